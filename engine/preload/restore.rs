//! Loaded into the CRIU that restores a container here.
//!
//! At its end CRIU lets go of thread after thread. Those it has let go of run, and
//! may end others: a program exits, calls `execve`, kills a child. CRIU takes a
//! thread that is gone by then for a restore that failed, and kills all the rest
//! of the container, which its source has given up ([`ptrace`]).
//!
//! And CRIU starts the action script at every point, of which blip wants one: at
//! the others the child that is to become the script ends at once ([`execvp`]).
//!
//! Runc passes its environment on to CRIU, so that it is loaded there, too, and
//! does nothing.
//!
//! **Invariants**
//! * Until a thread has been let go of, every answer is the kernel's.
//! * After that only "no such process" becomes "done", and only for what is said
//!   to a thread on its way out of CRIU's hands.
//! * Nothing here allocates, blocks or panics.
//!
//! It stands alone, as `lib.rs` does: `build.rs` compiles it, without `std`.

#![no_std]
#![deny(unsafe_op_in_unsafe_fn)]

mod call;

use call::{nr, set_errno, system_call};
use core::ffi::{CStr, c_char, c_int, c_long};
use core::sync::atomic::{AtomicBool, Ordering};

/// Requests of ptrace(2); the first three answer with what they have read.
const PEEKS: core::ops::RangeInclusive<c_int> = 1..=3;
const SETREGS: c_int = 13;
const SETFPREGS: c_int = 15;
const DETACH: c_int = 17;
const SETREGSET: c_int = 0x4205;
const ESRCH: isize = 3;

/// Whether a thread has been let go of.
static LET_GO: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    static program_invocation_short_name: *const c_char;
    static environ: *const *const c_char;
    fn getenv(name: *const c_char) -> *const c_char;
    fn unsetenv(name: *const c_char) -> c_int;
    fn execvpe(
        file: *const c_char,
        arguments: *const *const c_char,
        environment: *const *const c_char,
    ) -> c_int;
}

/// Runs when the loader is done.
#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = init;

/// What CRIU runs must not load us.
extern "C" fn init() {
    // SAFETY: the C library has set its name, which ends in zero, and no other
    // thread runs yet.
    unsafe {
        if CStr::from_ptr(program_invocation_short_name) == c"criu" {
            unsetenv(c"LD_PRELOAD".as_ptr());
        }
    }
}

/// The C library's `ptrace`, as CRIU calls it.
///
/// # Safety
/// As for the request that is meant.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ptrace(request: c_int, pid: c_int, address: usize, data: usize) -> c_long {
    let mut word = 0_isize;
    let peeks = PEEKS.contains(&request);
    let data = if peeks { (&raw mut word) as usize } else { data };
    let arguments = [request as usize, pid as usize, address, data, 0, 0];
    // SAFETY: the caller's business.
    let result = unsafe { system_call(nr::PTRACE, arguments) };
    if request == DETACH && result == 0 {
        LET_GO.store(true, Ordering::Relaxed);
    }
    let parting = matches!(request, DETACH | SETREGS | SETFPREGS | SETREGSET);
    if parting && result == -ESRCH && LET_GO.load(Ordering::Relaxed) {
        return 0;
    }
    match result {
        0.. if peeks => word as c_long,
        _ => c_long::from(set_errno(result)),
    }
}

/// The C library's `execvp`, as CRIU's children call it.
///
/// # Safety
/// As for the other.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn execvp(file: *const c_char, arguments: *const *const c_char) -> c_int {
    // SAFETY: names and values of the environment end in zero, as does `file`; a
    // child of CRIU has one thread.
    unsafe {
        let (script, point) =
            (getenv(c"BLIP_ACTION".as_ptr()), getenv(c"CRTOOLS_SCRIPT_ACTION".as_ptr()));
        if !script.is_null()
            && !point.is_null()
            && CStr::from_ptr(file) == CStr::from_ptr(script)
            && CStr::from_ptr(point) != c"pre-resume"
        {
            system_call(nr::EXIT_GROUP, [0; 6]);
        }
        execvpe(file, arguments, environ)
    }
}
