//! Ctrl-C, SIGTERM, the SIGHUP of a terminal that is closed, and SIGUSR1, by which schedulers warn and which Open MPI's launcher hands on.
//!
//! Where nothing would be lost, the first ends the process at once. A run asks to be spared ([`Stop::in_good_order`]): then the first asks it
//! to stop, and the second ends the process. Either way the exit code is 128 and the signal's number.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use colrow_tensor::{Error, Result};

/// Whether and by which signal the program was asked to stop.
pub(crate) struct Stop {
    asked: AtomicBool,
    signal: AtomicU8,
    /// What is said to the first signal, once it only asks.
    words: Mutex<Option<&'static str>>,
}

static STOP: Stop = Stop { asked: AtomicBool::new(false), signal: AtomicU8::new(0), words: Mutex::new(None) };

impl Stop {
    /// From now on the first signal asks, is answered by these words, and does not end the process.
    pub(crate) fn in_good_order(&self, words: &'static str) {
        *self.words() = Some(words);
    }

    fn words(&self) -> MutexGuard<'_, Option<&'static str>> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The flag that the first signal sets.
    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.asked
    }

    /// The signal that asked, if any did.
    pub(crate) fn signal(&self) -> Option<u8> {
        Some(self.signal.load(Ordering::SeqCst)).filter(|&signal| signal != 0)
    }
}

/// Lets a write beyond the limit on the size of files (`ulimit -f`) fail like any other, instead of ending the process.
pub(crate) fn survive_file_limit() {
    // without a handler the write still fails, only with fewer words
    #[cfg(unix)]
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, std::sync::Arc::default());
}

/// Catches signals for the rest of the process.
///
/// # Errors
/// Signals that cannot be caught.
pub(crate) fn catch() -> Result<&'static Stop> {
    os::catch().map_err(|e| Error::new(format!("cannot catch signals: {e}")))?;
    Ok(&STOP)
}

#[cfg(unix)]
mod os {
    use std::time::{Duration, Instant};
    use std::{fs, io, thread};

    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
    use signal_hook::iterator::Signals;
    use signal_hook::low_level;

    use super::{Ordering, STOP};
    use crate::output;

    /// One order may come twice: `timeout` sends its signal to the process and to the process's group.
    const TOGETHER: Duration = Duration::from_millis(200);

    pub(super) fn catch() -> io::Result<()> {
        let ignored = ignored();
        let mut signals =
            Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1].into_iter().filter(|s| ignored & 1 << (s - 1) == 0))?;
        thread::Builder::new().name("signals".into()).spawn(move || {
            let mut first: Option<Instant> = None;
            for signal in signals.forever() {
                match (first, *STOP.words()) {
                    (Some(at), _) if at.elapsed() < TOGETHER => {}
                    (None, Some(words)) => {
                        first = Some(Instant::now());
                        STOP.signal.store(signal as u8, Ordering::SeqCst);
                        STOP.asked.store(true, Ordering::SeqCst);
                        // a reader that does not read must not keep the second from ending the process
                        let _ = thread::Builder::new().spawn(move || output::say(words));
                    }
                    _ => low_level::exit(128 + signal),
                }
            }
        })?;
        Ok(())
    }

    /// The signals, one a bit, that whoever started the process told it to ignore: `nohup` does so with SIGHUP, a shell with the SIGINT of
    /// what it runs in the background. Known on Linux.
    fn ignored() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
    }
}

/// Elsewhere Ctrl-C ends the process, which a run survives as it survives `kill -9`.
#[cfg(not(unix))]
mod os {
    pub(super) fn catch() -> std::io::Result<()> {
        Ok(())
    }
}
