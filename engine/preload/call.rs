//! System calls without the C library, for what both libraries do.

use core::arch::asm;
use core::ffi::c_int;

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// What a function of the C library returns after a system call's answer.
pub(crate) fn set_errno(result: isize) -> c_int {
    if result >= 0 {
        return result as c_int;
    }
    // SAFETY: the C library's own place for this thread's error.
    unsafe { *__errno_location() = -result as c_int };
    -1
}

#[cfg(target_arch = "x86_64")]
#[allow(dead_code, reason = "each library needs some of them")]
pub(crate) mod nr {
    //! Numbers of system calls: asm/unistd_64.h.
    pub(crate) const READ: usize = 0;
    pub(crate) const CLOSE: usize = 3;
    pub(crate) const FSTAT: usize = 5;
    pub(crate) const LSEEK: usize = 8;
    pub(crate) const MMAP: usize = 9;
    pub(crate) const IOCTL: usize = 16;
    pub(crate) const SENDMSG: usize = 46;
    pub(crate) const GETSOCKOPT: usize = 55;
    pub(crate) const OPENAT: usize = 257;
    pub(crate) const READLINKAT: usize = 267;
    pub(crate) const PTRACE: usize = 101;
    pub(crate) const EXIT_GROUP: usize = 231;
    pub(crate) const PRLIMIT: usize = 302;
}

#[cfg(target_arch = "aarch64")]
#[allow(dead_code, reason = "each library needs some of them")]
pub(crate) mod nr {
    //! Numbers of system calls: asm-generic/unistd.h.
    pub(crate) const IOCTL: usize = 29;
    pub(crate) const OPENAT: usize = 56;
    pub(crate) const CLOSE: usize = 57;
    pub(crate) const LSEEK: usize = 62;
    pub(crate) const READ: usize = 63;
    pub(crate) const FSTAT: usize = 80;
    pub(crate) const READLINKAT: usize = 78;
    pub(crate) const GETSOCKOPT: usize = 209;
    pub(crate) const SENDMSG: usize = 211;
    pub(crate) const MMAP: usize = 222;
    pub(crate) const PTRACE: usize = 117;
    pub(crate) const EXIT_GROUP: usize = 94;
    pub(crate) const PRLIMIT: usize = 261;
}

/// One system call; its answer, or an error's number below zero.
///
/// # Safety
/// As for that system call.
pub(crate) unsafe fn system_call(number: usize, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: the kernel's calling convention (syscall(2)); what the call does
    // to memory is the caller's business.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a as isize => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack)
        );
    }
    result
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
