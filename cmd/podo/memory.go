package main

import (
	"debug/elf"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// preferMemory makes the garbage collector work sooner than Go would: most of what
// podo holds is made at the start and kept, and a heap that once grew stays holey.
// Starts took no longer with it. GOGC says otherwise.
func preferMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(40)
	}
}

// settled is how long after the last part is ready a start's own work has ended, and the
// memory that only it needed can go back to the machine.
const settled = 30 * time.Second

// giveBack returns that memory: what is free of the heap, and the parts of the program
// that ran once.
func giveBack() {
	debug.FreeOSMemory()
	_ = unmapProgram() // its pages stay, which is no loss but of memory
}

// unmapProgram takes this program's code and constants out of its memory. What runs again
// comes back from the page cache as it is touched; the rest the machine may use.
func unmapProgram() error {
	file, err := elf.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer file.Close()
	if file.Type != elf.ET_EXEC { // it is not where its file says
		return nil
	}
	page := uint64(os.Getpagesize())
	for _, p := range file.Progs {
		// What may be written differs from the file, and would be lost.
		if p.Type != elf.PT_LOAD || p.Flags&elf.PF_W != 0 {
			continue
		}
		from, to := p.Vaddr&^(page-1), (p.Vaddr+p.Filesz)&^(page-1)
		if from == to {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(from), uintptr(to-from), unix.MADV_DONTNEED); errno != 0 {
			return errno
		}
	}
	return nil
}
