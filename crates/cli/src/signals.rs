//! Ctrl-C and SIGTERM: the first asks the run to stop after its step, the second stops at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use colrow_tensor::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// Exit code of a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// A flag that the first Ctrl-C or SIGTERM sets; the second ends the process.
///
/// # Errors
/// Signals that cannot be caught.
pub(crate) fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // registered first, so that it sees the flag as it was before this signal
        flag::register_conditional_shutdown(signal, INTERRUPTED, stop.clone())
            .and_then(|_| flag::register(signal, stop.clone()))
            .map_err(|e| Error::new(format!("cannot catch signals: {e}")))?;
    }
    Ok(stop)
}
