//! How the next token is chosen from a model's logits.

use colrow_tensor::rng::Key;

/// A choice by chance among the likely tokens, or the most likely one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What logits are divided by before the softmax; with 0 the most likely token is taken.
    pub temperature: f64,
    /// Only so many of the most likely tokens are left to choose from; all with 0.
    pub top_k: usize,
    /// Only the most likely tokens that together have this probability (Holtzman et al. 2020); all with 1.
    pub top_p: f64,
    /// Where random numbers come from.
    pub key: Key,
}

impl Choice {
    /// The most likely token, always.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, key: Key::new(0) }
    }

    /// Whether nothing is left to chance.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// The token of sequence `sequence` at step `step`. What logits are not finite is as unlikely as can be.
    pub fn of(&self, logits: &[f32], sequence: usize, step: usize) -> u32 {
        let value = |i: usize| if logits[i].is_nan() { f32::NEG_INFINITY } else { logits[i] };
        let best = (0..logits.len()).reduce(|best, i| if value(i) > value(best) { i } else { best }).unwrap_or(0);
        if self.is_greedy() || !value(best).is_finite() {
            return best as u32;
        }
        let top = f64::from(value(best));
        let weight = |i: usize| ((f64::from(value(i)) - top) / self.temperature).exp();
        let mut tokens: Vec<(usize, f64)> = (0..logits.len()).map(|i| (i, weight(i))).filter(|t| t.1 > 0.0).collect();
        // the first of equals, as the most likely token is
        tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.top_k > 0 {
            tokens.truncate(self.top_k);
        }
        let all: f64 = tokens.iter().map(|t| t.1).sum();
        if self.top_p < 1.0 {
            let mut before = 0.0;
            let kept = tokens.iter().take_while(|t| {
                let wanted = before < self.top_p * all;
                before += t.1;
                wanted
            });
            let kept = kept.count();
            tokens.truncate(kept.max(1));
        }
        let all: f64 = tokens.iter().map(|t| t.1).sum();
        let mut left = self.key.child(step as u64).uniform(sequence as u64) * all;
        for &(token, weight) in &tokens {
            left -= weight;
            if left < 0.0 {
                return token as u32;
            }
        }
        tokens[tokens.len() - 1].0 as u32
    }
}

#[cfg(test)]
mod tests {
    use std::f32::consts::LN_2;

    use super::*;

    /// Probabilities ½, ¼, ⅛, ⅛ of tokens 2, 0, 1, 4; token 3 has none.
    const LOGITS: [f32; 5] = [-LN_2, -2.0 * LN_2, 0.0, f32::NEG_INFINITY, -2.0 * LN_2];

    fn shares(choice: Choice) -> [f64; 5] {
        let mut counts = [0.0; 5];
        (0..4000).for_each(|step| counts[choice.of(&LOGITS, step % 3, step) as usize] += 1.0);
        counts.map(|count| count / 4000.0)
    }

    /// Within 4.5 standard errors, √(p(1 − p)/4000).
    #[track_caller]
    fn near(choice: Choice, expected: [f64; 5]) {
        for (found, p) in shares(choice).into_iter().zip(expected) {
            assert!((found - p).abs() <= 4.5 * (p * (1.0 - p) / 4000.0).sqrt(), "{found} is not {p}");
        }
    }

    #[test]
    fn tokens_are_drawn_by_their_probabilities() {
        let choice = Choice { temperature: 1.0, key: Key::new(3), ..Choice::greedy() };
        near(choice, [0.25, 0.125, 0.5, 0.0, 0.125]);
        near(Choice { top_k: 2, ..choice }, [1.0 / 3.0, 0.0, 2.0 / 3.0, 0.0, 0.0]);
        // the second token reaches 0.6, the third is needed for 0.8
        near(Choice { top_p: 0.6, ..choice }, [1.0 / 3.0, 0.0, 2.0 / 3.0, 0.0, 0.0]);
        near(Choice { top_p: 0.8, ..choice }, [2.0 / 7.0, 1.0 / 7.0, 4.0 / 7.0, 0.0, 0.0]);
        near(Choice { top_p: 0.0, ..choice }, [0.0, 0.0, 1.0, 0.0, 0.0]);
        let half = [0.25_f64, 0.125, 0.5, 0.0, 0.125].map(|p| p * p);
        near(Choice { temperature: 0.5, ..choice }, half.map(|p| p / half.iter().sum::<f64>()));
        near(Choice { temperature: 0.0, ..choice }, [0.0, 0.0, 1.0, 0.0, 0.0]);
        near(Choice { top_k: 1, ..choice }, [0.0, 0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_seed_repeats_its_tokens_and_no_numbers_stop_it() {
        let choice = Choice { temperature: 1.0, key: Key::new(3), ..Choice::greedy() };
        let text = |choice: Choice| (0..50).map(|step| choice.of(&LOGITS, 0, step)).collect::<Vec<_>>();
        assert_eq!(text(choice), text(choice));
        assert_ne!(text(choice), text(Choice { key: Key::new(4), ..choice }));
        assert_eq!(choice.of(&[f32::NAN, 1.0, f32::NAN], 0, 0), 1);
        assert_eq!(choice.of(&[f32::NAN; 3], 0, 0), 0);
        assert_eq!(choice.of(&[0.0, f32::INFINITY], 0, 0), 1);
    }
}
