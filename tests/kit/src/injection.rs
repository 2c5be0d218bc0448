//! Makes a thread of another process do system calls, by ptrace(2), so that a test sees what the
//! sandbox of the real process permits.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::libc;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// How far below the stack pointer texts are put, in bytes; the first 128 may be in use (red zone).
const ROOM: u64 = 4096;

/// A stopped thread. Dropping it restores the registers and lets the thread go on.
#[derive(Debug)]
pub struct Injection {
    thread: Pid,
    memory: File,
    registers: libc::user_regs_struct,
}

impl Injection {
    /// Stops a thread just behind a system call. A call in which the thread waits is interrupted,
    /// and restarted by the kernel later.
    pub fn begin(thread: u32) -> Injection {
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{thread}/mem"))
            .expect("it runs, and root may");
        let thread = Pid::from_raw(thread.cast_signed());
        ptrace::attach(thread).expect("root may trace");
        wait(thread);
        let mut registers = ptrace::getregs(thread).expect("it stands still");
        let is_behind_call = |registers: &libc::user_regs_struct| {
            let mut instruction = [0; 2];
            let read = memory.read_exact_at(&mut instruction, registers.rip - 2);
            read.expect("there is code");
            instruction == [0x0f, 0x05]
        };
        while !is_behind_call(&registers) {
            // The thread was computing. It stops at the entry of its next call, and at the exit.
            for _ in 0..2 {
                ptrace::syscall(thread, None).expect("it stands still");
                wait(thread);
            }
            registers = ptrace::getregs(thread).expect("it stands still");
        }
        Injection {
            thread,
            memory,
            registers,
        }
    }

    /// Writes a text to the memory of the process, and returns its address, valid for the next
    /// call.
    pub fn text(&self, text: &str) -> u64 {
        let place = self.registers.rsp - ROOM;
        let text = [text.as_bytes(), &[0]].concat();
        self.memory.write_all_at(&text, place).expect("it is stack");
        place
    }

    /// Makes the thread do a system call, and returns the result of the call.
    pub fn call(&self, number: libc::c_long, arguments: &[u64]) -> io::Result<u64> {
        let argument = |index: usize| arguments.get(index).copied().unwrap_or_default();
        let registers = libc::user_regs_struct {
            rip: self.registers.rip - 2,
            rax: number.cast_unsigned(),
            // The kernel must not restart the call that was interrupted.
            orig_rax: u64::MAX,
            rdi: argument(0),
            rsi: argument(1),
            rdx: argument(2),
            r10: argument(3),
            r8: argument(4),
            r9: argument(5),
            ..self.registers
        };
        ptrace::setregs(self.thread, registers).expect("it stands still");
        ptrace::step(self.thread, None).expect("it stands still");
        wait(self.thread);
        let result = ptrace::getregs(self.thread).expect("it stands still").rax;
        match result.cast_signed() {
            error @ -4095..=-1 => Err(io::Error::from_raw_os_error(-(error as i32))),
            _ => Ok(result),
        }
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // An error means that the thread is gone, and then nothing has to be restored.
        let _ = ptrace::setregs(self.thread, self.registers);
        let _ = ptrace::detach(self.thread, None);
    }
}

fn wait(thread: Pid) {
    waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it is traced");
}
