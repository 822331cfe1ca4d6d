//! Learning-rate schedules with the values of `transformers`' `get_*_schedule_with_warmup`.

use crate::recipe::Schedule;

/// The learning rate of a step.
///
/// `step` counts from 0, so a warm-up's first step has rate 0. With `w` warm-up steps and `t` steps in all, the share
/// of `base` is
/// - `step / w` in the warm-up (`step < w`), and after it
/// - linear: `(t - step) / (t - w)`,
/// - cosine: `(1 + cos(π (step - w) / (t - w))) / 2`,
/// - constant: 1.
///
/// From step `t` on, linear and cosine stay at 0.
pub fn lr_at(schedule: Schedule, base: f64, step: u64, warmup_steps: u64, total_steps: u64) -> f64 {
    if step < warmup_steps {
        return base * (step as f64 / warmup_steps as f64);
    }
    let done =
        if step >= total_steps { 1.0 } else { (step - warmup_steps) as f64 / (total_steps - warmup_steps) as f64 };
    base * match schedule {
        Schedule::Linear => 1.0 - done,
        Schedule::Cosine => (1.0 + (std::f64::consts::PI * done).cos()) / 2.0,
        Schedule::Constant => 1.0,
    }
}

/// The warm-up steps that `optim.warmup` asks for: below 1 it is a share of all steps, rounded up but for the last of them, which alone would be
/// at a rate of 0; else their number.
pub fn warmup_steps(warmup: f64, total_steps: u64) -> u64 {
    match warmup < 1.0 {
        true => ((warmup * total_steps as f64).ceil() as u64).min(total_steps.saturating_sub(1)),
        false => warmup as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(schedule: Schedule, warmup: u64, total: u64, expected: &[(u64, f64)]) {
        for (step, rate) in expected {
            let found = lr_at(schedule, 10.0, *step, warmup, total);
            assert!((found - rate).abs() < 1e-12, "{schedule}, step {step}: expected {rate}, found {found}");
        }
    }

    #[test]
    fn linear() {
        check(Schedule::Linear, 2, 10, &[(0, 0.0), (1, 5.0), (2, 10.0), (4, 7.5), (9, 1.25), (10, 0.0), (99, 0.0)]);
        check(Schedule::Linear, 0, 4, &[(0, 10.0), (1, 7.5), (2, 5.0), (3, 2.5), (4, 0.0)]);
    }

    #[test]
    fn cosine() {
        // cos(π/4) = √2/2, cos(π/2) = 0, cos(3π/4) = -√2/2.
        let half_root = std::f64::consts::FRAC_1_SQRT_2;
        let expected = [(0, 0.0), (1, 5.0), (2, 10.0), (4, 5.0 + 5.0 * half_root), (6, 5.0)];
        check(Schedule::Cosine, 2, 10, &expected);
        check(Schedule::Cosine, 2, 10, &[(8, 5.0 - 5.0 * half_root), (10, 0.0), (18, 0.0)]);
    }

    #[test]
    fn constant() {
        check(Schedule::Constant, 4, 10, &[(0, 0.0), (1, 2.5), (3, 7.5), (4, 10.0), (9, 10.0), (99, 10.0)]);
    }

    #[test]
    fn no_steps_and_a_warmup_that_never_ends() {
        for schedule in [Schedule::Linear, Schedule::Cosine] {
            check(schedule, 0, 0, &[(0, 0.0)]);
            check(schedule, 20, 10, &[(5, 2.5), (10, 5.0), (19, 9.5), (20, 0.0)]);
        }
    }

    #[test]
    fn warmup_is_a_share_or_a_number() {
        let cases = [(0.0, 0), (0.1, 3), (0.06, 2), (0.99, 24), (1.0, 1), (100.0, 100)];
        for (warmup, steps) in cases {
            assert_eq!(warmup_steps(warmup, 25), steps, "{warmup}");
        }
        assert_eq!([0, 1, 2].map(|total| warmup_steps(0.1, total)), [0, 0, 1]);
    }
}
