/*
 * nft runs the nft program that lies beside it in lib/, with the loader and the
 * libraries that lie there too, so that it needs nothing of the host's.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

/* The host's loader settings are meant for the host's libraries. */
static void drop_loader_settings(void)
{
	char **to = environ;

	for (char **from = environ; *from; from++)
		if (strncmp(*from, "LD_", 3) != 0)
			*to++ = *from;
	*to = NULL;
}

int main(int argc, char **argv)
{
	static char dir[PATH_MAX], lib[PATH_MAX + 8], loader[PATH_MAX + 64];
	static char names[PATH_MAX + 64], program[PATH_MAX + 64];
	ssize_t n = readlink("/proc/self/exe", dir, sizeof dir - 1);
	char **args = calloc((size_t)argc + 10, sizeof *args);
	int i = 0;

	if (n < 0 || !args) {
		perror("nft: find my own folder");
		return 1;
	}
	dir[n] = 0;
	*strrchr(dir, '/') = 0;
	snprintf(lib, sizeof lib, "%s/lib", dir);
	snprintf(loader, sizeof loader, "%s/" LOADER, lib);
	snprintf(names, sizeof names, "%s/libnames.so", lib);
	snprintf(program, sizeof program, "%s/nft", lib);

	args[i++] = loader;
	args[i++] = "--inhibit-cache";
	args[i++] = "--library-path";
	args[i++] = lib;
	args[i++] = "--preload";
	args[i++] = names;
	args[i++] = "--argv0";
	args[i++] = "nft";
	args[i++] = program;
	for (int j = 1; j < argc; j++)
		args[i++] = argv[j];

	drop_loader_settings();
	execv(loader, args);
	perror(loader);
	return 127;
}
