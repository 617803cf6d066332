/*
 * Preloaded into User-Mode Linux. Linux 6.1 sets the registers of its processes with a
 * block of 2696 bytes, which holds what processors had when it was written. One with AMX
 * has more, and its kernel refuses a block that is shorter than all (EFAULT). So the block
 * is filled up, without AMX in it. Linux 6.13 needs this no more.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
	xstate = 0x202,		/* NT_X86_XSTATE, <elf.h> */
	header = 512,		/* of the area: a bit for each component that is in it */
};
static const uint64_t amx = 3ull << 17;

static char whole[1 << 16];
static size_t size;

static long call(long request, long pid, void *addr, void *data)
{
	return syscall(SYS_ptrace, request, pid, addr, data);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list rest;
	va_start(rest, request);
	long pid = va_arg(rest, int);
	void *addr = va_arg(rest, void *);
	void *data = va_arg(rest, void *);
	va_end(rest);

	if (request >= PTRACE_PEEKTEXT && request <= PTRACE_PEEKUSER) {
		long word;
		if (call(request, pid, addr, &word) < 0)
			return -1;
		errno = 0;
		return word;
	}
	if (request != PTRACE_SETREGSET || (long)addr != xstate)
		return call(request, pid, addr, data);

	struct iovec *theirs = data, ours = { whole, sizeof whole };
	if (!size) {
		if (call(PTRACE_GETREGSET, pid, addr, &ours) < 0)
			return -1;
		size = ours.iov_len;
	}
	if (theirs->iov_len >= size)
		return call(request, pid, addr, data);
	memset(whole, 0, size);
	memcpy(whole, theirs->iov_base, theirs->iov_len);
	uint64_t present;
	memcpy(&present, whole + header, sizeof present);
	present &= ~amx;
	memcpy(whole + header, &present, sizeof present);
	memset(whole + header + 8, 0, 56);	/* nothing in it is compacted */
	ours.iov_len = size;
	return call(request, pid, addr, &ours);
}
