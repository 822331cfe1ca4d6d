//! Live and peak bytes by class: every buffer of a device is on the meter from its allocation to its drop.

use std::sync::Mutex;

use serde::{Deserialize, Serialize};

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Parameters of the model.
    Weights,
    /// Gradients of parameters.
    Gradients,
    /// Optimizer state.
    Optimizer,
    /// Held by the tape for the backward pass.
    Kept,
    /// Everything that dies within a step: activations in flight, their gradients, scratch.
    Workspace,
    /// The norm cache.
    Cache,
}

/// Bytes by [`Class`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// [`Class::Weights`].
    pub weights: usize,
    /// [`Class::Gradients`].
    pub gradients: usize,
    /// [`Class::Optimizer`].
    pub optimizer: usize,
    /// [`Class::Kept`].
    pub kept: usize,
    /// [`Class::Workspace`].
    pub workspace: usize,
    /// [`Class::Cache`].
    pub cache: usize,
}

impl Bytes {
    /// Sum over the classes.
    pub fn total(&self) -> usize {
        self.weights + self.gradients + self.optimizer + self.kept + self.workspace + self.cache
    }

    fn of(&mut self, class: Class) -> &mut usize {
        match class {
            Class::Weights => &mut self.weights,
            Class::Gradients => &mut self.gradients,
            Class::Optimizer => &mut self.optimizer,
            Class::Kept => &mut self.kept,
            Class::Workspace => &mut self.workspace,
            Class::Cache => &mut self.cache,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    live: Bytes,
    peak: Bytes,
}

/// Counts the bytes of one device.
#[derive(Debug, Default)]
pub struct Meter(Mutex<State>);

impl Meter {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // the counters are plain integers: a panic elsewhere cannot leave them half-written
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Bytes alive now.
    pub fn live(&self) -> Bytes {
        self.state().live
    }

    /// Bytes by class at the moment when their total was largest since the last [`Meter::reset_peak`].
    pub fn peak(&self) -> Bytes {
        self.state().peak
    }

    /// Starts a new peak from what is alive now.
    pub fn reset_peak(&self) {
        let mut s = self.state();
        s.peak = s.live;
    }

    pub(crate) fn add(&self, class: Class, bytes: usize) {
        let mut s = self.state();
        *s.live.of(class) += bytes;
        if s.live.total() > s.peak.total() {
            s.peak = s.live;
        }
    }

    pub(crate) fn sub(&self, class: Class, bytes: usize) {
        *self.state().live.of(class) -= bytes;
    }

    pub(crate) fn reclass(&self, from: Class, to: Class, bytes: usize) {
        let mut s = self.state();
        *s.live.of(from) -= bytes;
        *s.live.of(to) += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_is_the_breakdown_at_the_largest_total() {
        let m = Meter::default();
        m.add(Class::Weights, 10);
        m.add(Class::Kept, 5);
        m.sub(Class::Kept, 5);
        m.add(Class::Workspace, 4);
        assert_eq!(m.peak(), Bytes { weights: 10, kept: 5, ..Bytes::default() });
        m.reset_peak();
        assert_eq!(m.peak().total(), 14);
        m.reclass(Class::Workspace, Class::Kept, 4);
        assert_eq!(m.live(), Bytes { weights: 10, kept: 4, ..Bytes::default() });
    }
}
