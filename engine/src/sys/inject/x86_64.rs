//! Injection on x86-64: registers, the `syscall` instruction, and what must be
//! mended around them. See the parent module for the rules.

use super::{Fetched, HoldError, InjectError};
use crate::sys::ptrace::{self, Held, Report, hold};
use crate::sys::{pidfd, readmem, wp};
use libc::user_regs_struct as Registers;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

const TRACESYSGOOD: i64 = 1;
const SUSPEND_SECCOMP: i64 = 1 << 21;
const GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;
const IO_PGETEVENTS: i64 = 333;
const SYSCALL_INSTRUCTION: [u8; 2] = [0x0f, 0x05];
/// Code segment of 64-bit user code.
const CS_64: u64 = 0x33;

/// Makes a userfaultfd in process `pid` and fetches it. `limit` bounds how
/// long its threads may take to stop.
pub fn userfaultfd_of(pid: i32, limit: Duration) -> Result<Fetched, InjectError> {
    let pidfd = pidfd::open(pid).map_err(|_| HoldError::Gone { pid })?;
    let door = syscall_instruction(pid)?;
    let options = TRACESYSGOOD | SUSPEND_SECCOMP;
    let (result, stopped) = hold(pid, options, limit, |held| {
        let threads = held.threads();
        let mut calls = Injection::begin(held, door)?;
        let fetched = calls.fetch_userfaultfd(&pidfd);
        calls.end()?;
        Ok::<_, InjectError>((fetched?, threads))
    })?;
    let (fd, threads) = result?;
    Ok(Fetched { fd, stopped, threads })
}

/// The leader of a held process, ready to make calls for us.
struct Injection<'a> {
    held: &'a mut Held,
    door: u64,
    saved: Registers,
    mask: u64,
}

impl<'a> Injection<'a> {
    fn begin(held: &'a mut Held, door: u64) -> Result<Self, InjectError> {
        let pid = held.pid;
        let unsuitable = |why| InjectError::Unsuitable { pid, why };
        // Executing another program may have won the race to the stop.
        let mut there = [0; 2];
        let read = readmem::read_pieces(pid, &[(door, 2)], &mut there);
        if read.ok() != Some(2) || there != SYSCALL_INSTRUCTION {
            return Err(HoldError::Gone { pid }.into());
        }
        let mask = signal_mask(pid)?;
        undo_eintr(pid, Some(mask))?;
        let mut saved = registers(pid)?;
        if saved.cs != CS_64 {
            return Err(unsuitable("it runs 32-bit code"));
        }
        if dispatches_syscalls(pid) {
            return Err(unsuitable("it dispatches its system calls to itself"));
        }
        if let Some(abort) = rseq_abort(pid, saved.rip) {
            saved.rip = abort;
        }
        set_signal_mask(pid, u64::MAX)?;
        // From here on to give up would be to leave it with our registers.
        held.deadline = None;
        Ok(Self { held, door, saved, mask })
    }

    fn fetch_userfaultfd(&mut self, pidfd: &OwnedFd) -> Result<OwnedFd, InjectError> {
        let number = self.call("userfaultfd", libc::SYS_userfaultfd, wp::OPEN_FLAGS)?;
        let fetched = pidfd::fetch(pidfd, number as i32);
        self.call("close", libc::SYS_close, number as u64)?;
        let pid = self.held.pid;
        fetched.map_err(|source| InjectError::Call { call: "pidfd_getfd", pid, source })
    }

    /// Makes one call with one argument.
    fn call(&mut self, call: &'static str, number: i64, arg: u64) -> Result<i64, InjectError> {
        let pid = self.held.pid;
        let registers_for_call = Registers {
            rip: self.door,
            rax: number as u64,
            rdi: arg,
            // "Not in a system call": the kernel must not try to restart one.
            orig_rax: u64::MAX,
            ..self.saved
        };
        set_registers(pid, &registers_for_call)?;
        self.step(Report::Syscall)?;
        self.step(Report::Syscall)?;
        let result = registers(pid)?.rax as i64;
        if (-4095..0).contains(&result) {
            let source = io::Error::from_raw_os_error(-result as i32);
            return Err(InjectError::Call { call, pid, source });
        }
        Ok(result)
    }

    /// Runs the leader to its next report of the kind `until`.
    fn step(&mut self, until: Report) -> Result<(), HoldError> {
        let pid = self.held.pid;
        ptrace::resume(pid, libc::PTRACE_SYSCALL, 0)?;
        loop {
            match self.held.wait(pid)? {
                report if report == until => return Ok(()),
                Report::Gone => return Err(HoldError::Gone { pid }),
                // SIGSTOP cannot be blocked; it has to wait its turn.
                Report::Signal(libc::SIGSTOP) => self.held.stop_again = true,
                _ => {}
            }
            ptrace::resume(pid, libc::PTRACE_SYSCALL, 0)?;
        }
    }

    /// Puts the leader back where it was.
    fn end(mut self) -> Result<(), HoldError> {
        let pid = self.held.pid;
        ptrace::interrupt(pid)?;
        self.step(Report::Event)?;
        set_registers(pid, &self.saved)?;
        set_signal_mask(pid, self.mask)
    }
}

/// If a stopped thread's call ended with `EINTR` only because of the stop,
/// has it made again. `mask`: the signals that stay blocked once it runs
/// on, if that is not what it blocks now.
pub(in crate::sys) fn undo_eintr(tid: i32, mask: Option<u64>) -> Result<(), HoldError> {
    let mut now = match registers(tid) {
        Err(HoldError::Gone { .. }) => return Ok(()),
        other => other?,
    };
    let call = now.orig_rax as i64;
    if now.rax as i64 != -i64::from(libc::EINTR) || call < 0 || now.cs != CS_64 {
        return Ok(());
    }
    if answers_eintr(tid, call, now.rdi) && !signal_waits(tid, mask) {
        now.rax = now.orig_rax;
        now.rip -= SYSCALL_INSTRUCTION.len() as u64;
        now.orig_rax = u64::MAX;
        set_registers(tid, &now)?;
    }
    Ok(())
}

/// Whether a system call may answer `EINTR` to a mere stop, and having done
/// so has had no effect. From signal(7), "Interruption of system calls and
/// library functions by stop signals"; reads and writes only of sockets,
/// where a timeout (`SO_RCVTIMEO`) is what makes them answer so.
fn answers_eintr(tid: i32, call: i64, first_argument: u64) -> bool {
    match call {
        libc::SYS_epoll_wait
        | libc::SYS_epoll_pwait
        | libc::SYS_epoll_pwait2
        | libc::SYS_rt_sigtimedwait
        | libc::SYS_semop
        | libc::SYS_semtimedop
        | libc::SYS_io_getevents
        | IO_PGETEVENTS
        | libc::SYS_recvfrom
        | libc::SYS_recvmsg
        | libc::SYS_recvmmsg
        | libc::SYS_sendto
        | libc::SYS_sendmsg
        | libc::SYS_sendmmsg
        | libc::SYS_accept
        | libc::SYS_accept4
        | libc::SYS_connect => true,
        libc::SYS_read | libc::SYS_readv | libc::SYS_write | libc::SYS_writev => {
            std::fs::read_link(format!("/proc/{tid}/fd/{first_argument}"))
                .is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
        }
        _ => false,
    }
}

/// Whether a signal is pending for a thread that it does not block.
fn signal_waits(tid: i32, mask: Option<u64>) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
    };
    let pending = field("SigPnd:") | field("ShdPnd:");
    pending & !mask.unwrap_or_else(|| field("SigBlk:")) & !field("SigIgn:") != 0
}

/// Where the thread must go on if it stands in a restartable sequence:
/// `struct rseq` points at a `struct rseq_cs` {version, flags: u32;
/// start_ip, post_commit_offset, abort_ip: u64} (linux/rseq.h).
fn rseq_abort(tid: i32, ip: u64) -> Option<u64> {
    let mut config = [0_u64; 3];
    // SAFETY: the kernel writes at most `addr` = 24 bytes at `data`, which
    // is `config`, valid and exclusively ours.
    let length = unsafe {
        libc::ptrace(
            libc::PTRACE_GET_RSEQ_CONFIGURATION,
            tid,
            size_of_val(&config),
            config.as_mut_ptr(),
        )
    };
    if length <= 0 || config[0] == 0 {
        return None;
    }
    let word = |address| {
        let mut bytes = [0; 8];
        let read = readmem::read_pieces(tid, &[(address, 8)], &mut bytes);
        (read.ok() == Some(8)).then(|| u64::from_ne_bytes(bytes))
    };
    let section = word(config[0] + 8).filter(|&section| section != 0)?;
    let start = word(section + 8)?;
    let inside = ip.wrapping_sub(start) < word(section + 16)?;
    if inside { word(section + 24) } else { None }
}

/// Whether the thread has its system calls turned into signals
/// (`PR_SET_SYSCALL_USER_DISPATCH`): an injected one would kill it.
fn dispatches_syscalls(tid: i32) -> bool {
    let mut config = [0_u64; 4];
    // SAFETY: the kernel writes exactly `addr` = 32 bytes (or fails) at
    // `data`, which is `config`, valid and exclusively ours.
    let answer = unsafe {
        libc::ptrace(
            GET_SYSCALL_USER_DISPATCH_CONFIG,
            tid,
            size_of_val(&config),
            config.as_mut_ptr(),
        )
    };
    answer >= 0 && config[0] != 0
}

/// Address of a `syscall` instruction in the target's vDSO.
fn syscall_instruction(pid: i32) -> Result<u64, InjectError> {
    for _ in 0..3 {
        if let Some(address) = search_vdso(pid)? {
            return Ok(address);
        }
        // `execve` maps the vDSO late: it may be there in a moment.
        std::thread::sleep(Duration::from_millis(1));
    }
    let why = "it has no vDSO with a system call instruction";
    Err(InjectError::Unsuitable { pid, why })
}

fn search_vdso(pid: i32) -> Result<Option<u64>, HoldError> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    if maps.is_empty() {
        return Err(HoldError::Gone { pid });
    }
    let range = maps
        .lines()
        .find(|line| line.ends_with("[vdso]"))
        .and_then(|line| line.split_once(' ')?.0.split_once('-'))
        .and_then(|(start, end)| {
            let hex = |text| u64::from_str_radix(text, 16).ok();
            Some((hex(start)?, hex(end)?))
        });
    let Some((start, end)) = range else { return Ok(None) };
    let mut code = vec![0; (end - start) as usize];
    // If it has moved meanwhile there is nothing to read: look again.
    let length = readmem::read_pieces(pid, &[(start, code.len())], &mut code).unwrap_or(0);
    let found = code[..length].windows(2).position(|pair| pair == SYSCALL_INSTRUCTION);
    Ok(found.map(|at| start + at as u64))
}

fn registers(tid: i32) -> Result<Registers, HoldError> {
    let mut registers = std::mem::MaybeUninit::<Registers>::uninit();
    // SAFETY: the kernel fills `data`, a valid place for the register set.
    let answer =
        unsafe { libc::ptrace(libc::PTRACE_GETREGS, tid, 0_usize, registers.as_mut_ptr()) };
    if answer < 0 {
        return Err(ptrace::failed("GETREGS", tid, io::Error::last_os_error()));
    }
    // SAFETY: the request succeeded, so the kernel has filled all of it.
    Ok(unsafe { registers.assume_init() })
}

fn set_registers(tid: i32, registers: &Registers) -> Result<(), HoldError> {
    // SAFETY: the kernel reads one register set at `data`, valid through
    // the call.
    let answer =
        unsafe { libc::ptrace(libc::PTRACE_SETREGS, tid, 0_usize, std::ptr::from_ref(registers)) };
    if answer < 0 {
        return Err(ptrace::failed("SETREGS", tid, io::Error::last_os_error()));
    }
    Ok(())
}

/// The signal mask of a stopped thread, as it will be once the call it is in
/// has ended (so not the temporary mask of `ppoll` and its kin).
fn signal_mask(tid: i32) -> Result<u64, HoldError> {
    let mut mask = 0_u64;
    // SAFETY: the kernel writes exactly `addr` = 8 bytes at `data`, which is
    // `mask`, valid and exclusively ours.
    let answer = unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, tid, 8_usize, &raw mut mask) };
    if answer < 0 {
        return Err(ptrace::failed("GETSIGMASK", tid, io::Error::last_os_error()));
    }
    Ok(mask)
}

/// Sets the signal mask of a stopped thread.
fn set_signal_mask(tid: i32, mask: u64) -> Result<(), HoldError> {
    // SAFETY: the kernel reads exactly `addr` = 8 bytes at `data`, which is
    // `mask`, valid through the call.
    let answer = unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, tid, 8_usize, &raw const mask) };
    if answer < 0 {
        return Err(ptrace::failed("SETSIGMASK", tid, io::Error::last_os_error()));
    }
    Ok(())
}
