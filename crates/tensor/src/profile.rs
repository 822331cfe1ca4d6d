//! Where a step's time goes: seconds, calls and floating-point operations by kernel.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What one kernel cost since the profile was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Cost {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Calls.
    pub calls: u64,
    /// Floating-point operations, a multiplication and an addition each: counted for matrix products and attention.
    pub flops: u64,
}

/// Costs by kernel. Off, it costs a load and a branch a call.
#[derive(Debug, Default)]
pub struct Profile {
    on: AtomicBool,
    costs: Mutex<BTreeMap<&'static str, Cost>>,
}

impl Profile {
    fn costs(&self) -> MutexGuard<'_, BTreeMap<&'static str, Cost>> {
        self.costs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts counting from zero.
    pub fn start(&self) {
        self.costs().clear();
        self.on.store(true, Ordering::Relaxed);
    }

    /// Stops counting and gives what was counted, the dearest first.
    pub fn stop(&self) -> Vec<(&'static str, Cost)> {
        self.on.store(false, Ordering::Relaxed);
        let mut costs: Vec<_> = std::mem::take(&mut *self.costs()).into_iter().collect();
        costs.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
        costs
    }

    /// Runs kernel `name`, which takes `flops` operations.
    pub(crate) fn time<R>(&self, name: &'static str, flops: u64, kernel: impl FnOnce() -> R) -> R {
        if !self.on.load(Ordering::Relaxed) {
            return kernel();
        }
        let clock = Instant::now();
        let result = kernel();
        let seconds = clock.elapsed().as_secs_f64();
        let mut costs = self.costs();
        let cost = costs.entry(name).or_default();
        *cost = Cost { seconds: cost.seconds + seconds, calls: cost.calls + 1, flops: cost.flops + flops };
        result
    }
}

#[cfg(test)]
mod tests {
    use crate::{Class, DType, Device};

    #[test]
    fn counts_calls_and_operations_while_it_is_on() {
        let device = Device::cpu();
        let (a, b) =
            (device.zeros(Class::Workspace, DType::F32, &[3, 4]), device.zeros(Class::Workspace, DType::F32, &[4, 5]));
        let mut c = device.zeros(Class::Workspace, DType::F32, &[3, 5]);
        let product = |c: &mut crate::Tensor| device.kernels().matmul(&a, false, &b, false, 0.0, c);
        product(&mut c);
        device.profile().start();
        product(&mut c);
        product(&mut c);
        device.kernels().scale(2.0, None, &mut c);
        let costs = device.profile().stop();
        let of = |name: &str| costs.iter().find(|(n, _)| *n == name).map(|(_, cost)| (cost.calls, cost.flops));
        assert_eq!((of("matmul"), of("scale")), (Some((2, 2 * 2 * 3 * 4 * 5)), Some((1, 0))));
        product(&mut c);
        assert!(device.profile().stop().is_empty());
    }
}
