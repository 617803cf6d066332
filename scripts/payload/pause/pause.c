/*
 * pause holds a pod's namespaces open: it is the pod's first process, waits for
 * the children that others leave behind, and goes when it is told to.
 */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void leave(int sig)
{
	(void)sig;
	_exit(0);
}

static void reap(int sig)
{
	(void)sig;
	while (waitpid(-1, 0, WNOHANG) > 0)
		;
}

int main(void)
{
	struct sigaction quit = { .sa_handler = leave };
	struct sigaction child = { .sa_handler = reap, .sa_flags = SA_NOCLDSTOP };

	/* As process 1 of a namespace, signals without a handler are dropped. */
	if (sigaction(SIGTERM, &quit, 0) || sigaction(SIGINT, &quit, 0) ||
	    sigaction(SIGCHLD, &child, 0))
		return 1;
	reap(SIGCHLD);
	for (;;)
		pause();
}
