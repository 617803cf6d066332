package e2e

import (
	"errors"
	"fmt"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (s *scene) jobBecomes(name string, want batchv1.JobConditionType) *batchv1.Job {
	s.Helper()
	var j *batchv1.Job
	s.within(90*time.Second, fmt.Sprintf("job %s is %s", name, want), func() (err error) {
		if j, err = s.BatchV1().Jobs(s.ns).Get(s.ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		for _, c := range j.Status.Conditions {
			if c.Type == want && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("it has %d succeeded, %d failed", j.Status.Succeeded, j.Status.Failed)
	})
	return j
}

func jobs(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: sums}
spec:
  completions: 3
  parallelism: 2
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: $BUSYBOX, command: [sh, -c, "echo index $JOB_COMPLETION_INDEX"]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: hopeless}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: main, image: $BUSYBOX, command: [sh, -c, "exit 7"]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: again}
spec:
  template:
    spec:
      restartPolicy: OnFailure
      volumes: [{name: v, emptyDir: {}}]
      containers:
      - name: main
        image: $BUSYBOX
        command: [sh, -c, "test -f /v/tried && exit 0; touch /v/tried; exit 1"]
        volumeMounts: [{name: v, mountPath: /v}]
`)
	if j := s.jobBecomes("sums", batchv1.JobComplete); j.Status.Succeeded != 3 {
		t.Errorf("%d of 3 succeeded", j.Status.Succeeded)
	}
	for i := range 3 {
		s.logs(10*time.Second, []string{"-l", fmt.Sprintf("batch.kubernetes.io/job-completion-index=%d", i)}, fmt.Sprintf("index %d", i))
	}
	if j := s.jobBecomes("hopeless", batchv1.JobFailed); j.Status.Failed != 1 {
		t.Errorf("%d pods failed", j.Status.Failed)
	}
	s.jobBecomes("again", batchv1.JobComplete)
}

func cronJobs(t *testing.T) {
	s := scenario(t)
	s.apply(`
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: main, image: $BUSYBOX, command: [echo, tock]}]
`)
	s.kubectl("create", "job", "by-hand", "--from=cronjob/tick")
	s.jobBecomes("by-hand", batchv1.JobComplete)
	s.within(100*time.Second, "the minute starts a job", func() error {
		list, err := s.BatchV1().Jobs(s.ns).List(s.ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, j := range list.Items {
			if j.Name != "by-hand" && j.Status.Succeeded == 1 && len(j.OwnerReferences) == 1 && j.OwnerReferences[0].Name == "tick" {
				return nil
			}
		}
		return errors.New("none has completed")
	})
}
