//! The system calls that a worker may use: the filter that all its threads get when they run.
//!
//! A system call that is not allowed fails with `EPERM` instead of ending the worker. Another C
//! library may try a newer system call before the allowed one, and that must not cost a request.
//!
//! seccomp sees the numbers that a call is given, but no memory that they point to. So an argument
//! that is a number has a list of values here; paths and addresses are left to the root folder and
//! to Landlock.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};

/// System calls that serving needs, whatever their arguments are.
const ALLOWED: &[libc::c_long] = &[
    // Sockets, and what is read from and written to them.
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_fstat,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Memory.
    libc::SYS_brk,
    libc::SYS_getrandom,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // A message that is too long for a datagram goes to journald as a file in memory.
    libc::SYS_memfd_create,
    // Threads start and end, and the last ones may be starting at this moment.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_geteuid,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
];

/// Older forms of the calls above that exist on this architecture only.
#[cfg(target_arch = "x86_64")]
const ALSO_ALLOWED: &[libc::c_long] = &[libc::SYS_epoll_wait, libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const ALSO_ALLOWED: &[libc::c_long] = &[];

/// The commands of fcntl(2) that are allowed with any argument. Those that are missing here name a
/// process that gets a signal (`F_SETOWN`, `F_SETOWN_EX`, `F_SETSIG`, `F_NOTIFY`) or keep others
/// from a file (locks and leases).
const FCNTL: &[i32] = &[
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_ADD_SEALS,
];

/// The options that are set on sockets, with their levels.
const SOCKET_OPTIONS: &[(i32, i32)] = &[
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
];

/// The bits of a socket's type that say what kind of socket it is. The others are flags.
const KIND: u64 = 0xf;

/// A condition for an argument, which is named by its number: the bits of the mask have this value.
struct Argument(u8, u64, u64);

impl Argument {
    fn is(argument: u8, value: i32) -> Argument {
        Argument(argument, u64::from(u32::MAX), number(value))
    }

    fn has_no(argument: u8, flag: i32) -> Argument {
        Argument(argument, number(flag), 0)
    }

    fn is_stream(argument: u8) -> Argument {
        Argument(argument, KIND, number(libc::SOCK_STREAM))
    }
}

/// Makes the filter. Only with `unix_sockets` the worker may open sockets that can be connected to
/// a unix socket.
pub(super) fn filter(unix_sockets: bool) -> Result<BpfProgram, Error> {
    let always = ALLOWED.iter().chain(ALSO_ALLOWED);
    let mut rules: BTreeMap<_, _> = always.map(|&call| (call, Vec::new())).collect();
    for (call, arguments) in conditions(unix_sockets) {
        let conditions = arguments
            .into_iter()
            .map(|Argument(argument, mask, value)| {
                let comparison = SeccompCmpOp::MaskedEq(mask);
                SeccompCondition::new(argument, SeccompCmpArgLen::Dword, comparison, value)
            });
        let conditions: Result<Vec<_>, _> = conditions.collect();
        let rule = SeccompRule::new(conditions?)?;
        rules.entry(call).or_default().push(rule);
    }
    let architecture = std::env::consts::ARCH.try_into()?;
    let denied = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter = SeccompFilter::new(rules, denied, SeccompAction::Allow, architecture)?;
    Ok(filter.try_into()?)
}

/// System calls that are allowed only if all these conditions are fulfilled. A call may be here
/// several times.
fn conditions(unix_sockets: bool) -> Vec<(libc::c_long, Vec<Argument>)> {
    use Argument as Is;
    let mut allowed = vec![
        // The two ends of a pair of streams are connected for good, unlike those of datagrams.
        (
            libc::SYS_socketpair,
            vec![Is::is(0, libc::AF_UNIX), Is::is_stream(1)],
        ),
        (
            libc::SYS_ioctl,
            vec![Argument(1, u64::from(u32::MAX), libc::FIONBIO)],
        ),
        (libc::SYS_mmap, vec![Is::has_no(2, libc::PROT_EXEC)]),
        (libc::SYS_mprotect, vec![Is::has_no(2, libc::PROT_EXEC)]),
        (libc::SYS_prctl, vec![Is::is(0, libc::PR_SET_NAME)]),
        // A descriptor with O_ASYNC sends signals.
        (
            libc::SYS_fcntl,
            vec![Is::is(1, libc::F_SETFL), Is::has_no(2, libc::O_ASYNC)],
        ),
        // The C library aborts the process by this call, for example when its heap is corrupt.
        (
            libc::SYS_tgkill,
            vec![Argument(0, u64::from(u32::MAX), std::process::id().into())],
        ),
    ];
    let fcntl = FCNTL.iter().map(|&command| vec![Is::is(1, command)]);
    allowed.extend(fcntl.map(|arguments| (libc::SYS_fcntl, arguments)));
    let options = SOCKET_OPTIONS.iter();
    let options = options.map(|&(level, name)| vec![Is::is(1, level), Is::is(2, name)]);
    allowed.extend(options.map(|arguments| (libc::SYS_setsockopt, arguments)));
    for family in [libc::AF_INET, libc::AF_INET6] {
        for protocol in [0, libc::IPPROTO_TCP] {
            let tcp = vec![Is::is(0, family), Is::is_stream(1), Is::is(2, protocol)];
            allowed.push((libc::SYS_socket, tcp));
        }
    }
    if unix_sockets {
        let stream = vec![Is::is(0, libc::AF_UNIX), Is::is_stream(1)];
        allowed.push((libc::SYS_socket, stream));
    }
    allowed
}

fn number(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}
