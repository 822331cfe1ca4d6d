//! What models read: the rows of a ragged batch, on the host.

/// Tokens of `b` sequences end to end, `n` rows together, without padding; each sequence has at least one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokens {
    /// Token ids, n.
    pub ids: Vec<u32>,
    /// Token types, n, which only some models read; none where nobody does.
    pub types: Vec<u32>,
    /// First rows of the sequences and the end, b + 1.
    pub bounds: Vec<u32>,
    /// How much each row counts in a loss over rows, n, finite and at least 0; a row of weight 0 is not a label. Without it each counts as 1.
    pub weight: Option<Vec<f32>>,
}

impl Tokens {
    /// Sequences of these ids, all rows of weight 1.
    pub fn of<S: AsRef<[u32]>>(sequences: impl IntoIterator<Item = S>) -> Self {
        let mut tokens = Self { bounds: vec![0], ..Self::default() };
        for sequence in sequences {
            tokens.ids.extend(sequence.as_ref());
            tokens.bounds.push(tokens.ids.len() as u32);
        }
        tokens
    }

    /// Number of sequences, b.
    pub fn sequences(&self) -> usize {
        self.bounds.len().saturating_sub(1)
    }

    /// What a loss over the rows is a mean of: the sum of their weights.
    pub fn total_weight(&self) -> f64 {
        match &self.weight {
            None => self.ids.len() as f64,
            Some(weight) => weight.iter().copied().map(f64::from).sum(),
        }
    }

    /// For each row the next token of its sequence and how much that counts: not at all behind the last.
    pub(crate) fn next(&self) -> (Vec<u32>, Vec<f32>) {
        let (mut labels, mut weights) = (self.ids.clone(), vec![0.0; self.ids.len()]);
        for window in self.bounds.windows(2) {
            let rows = window[0] as usize..window[1] as usize;
            let Some(last) = rows.clone().last() else { continue };
            labels.copy_within(rows.start + 1..rows.end, rows.start);
            match &self.weight {
                Some(weight) => weights[rows.start..last].copy_from_slice(&weight[rows.start + 1..rows.end]),
                None => weights[rows.start..last].fill(1.0),
            }
        }
        (labels, weights)
    }

    /// For each row its position in its sequence.
    pub fn positions(&self) -> impl Iterator<Item = u32> {
        self.bounds.windows(2).flat_map(|w| 0..w[1] - w[0])
    }

    /// The ids by sequence.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        self.bounds.windows(2).map(|w| &self.ids[w[0] as usize..w[1] as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Labels never cross from one sequence to the next, and a first token's weight has no effect.
    #[test]
    fn the_next_tokens_are_those_of_the_same_sequence() {
        let mut tokens = Tokens::of([&[5, 8, 2][..], &[7], &[3, 4]]);
        assert_eq!(tokens.next(), (vec![8, 2, 2, 7, 4, 4], vec![1.0, 1.0, 0.0, 0.0, 1.0, 0.0]));
        tokens.weight = Some(vec![9.0, 0.0, 2.0, 9.0, 9.0, 0.5]);
        assert_eq!(tokens.next().1, [0.0, 2.0, 0.0, 0.0, 0.5, 0.0]);
    }
}
