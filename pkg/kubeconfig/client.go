package kubeconfig

import (
	"context"
	"net"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Dial is how a client connects: the Dial method of a gate.Gate, or nil for the
// network as it is.
type Dial func(ctx context.Context, network, addr string) (net.Conn, error)

// Clientset is a client of what Client reads.
func Clientset(path string, dial Dial) (kubernetes.Interface, error) {
	c, err := Client(path, dial)
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(c)
}

// Client reads the kubeconfig at path into a client configuration that dials
// through dial, speaks protobuf and is not throttled. Callers may change the copy.
func Client(path string, dial Dial) (*rest.Config, error) {
	c, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, err
	}
	c.Dial = dial
	c.QPS = -1
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	return c, nil
}
