//! The lengths of batches: all of them that memory depends on.

/// Lengths of a batch's sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens of each source.
    pub sources: Vec<u32>,
    /// Tokens of each target, for models that answer in text.
    pub targets: Option<Vec<u32>>,
}

impl Lengths {
    /// Tokens of all sources and targets.
    pub fn tokens(&self) -> usize {
        let [sources, _, _, targets, ..] = self.figures();
        sources + targets
    }

    /// Most bytes that a batch of these lengths takes on the host: tokens with their types, places and positions; sequences with their bounds,
    /// labels and the bounds of their targets; and targets.
    pub fn host_bytes(&self) -> usize {
        let [tokens, sequences, _, targets, ..] = self.figures();
        let token = (4 + 4 + 1 + 8) + (8 + 8);
        let target = (4 + 4) + (8 + 8 + 8);
        token * tokens + target * targets + (4 + 4 + 4) * sequences
    }

    /// All that memory depends on: tokens, sequences and the longest, of sources and of targets.
    fn figures(&self) -> [usize; 6] {
        let of = |lengths: &[u32]| {
            let tokens = lengths.iter().map(|&l| l as usize).sum();
            [tokens, lengths.len(), lengths.iter().copied().max().unwrap_or(0) as usize]
        };
        let [a, b, c] = of(&self.sources);
        let [d, e, f] = of(self.targets.as_deref().unwrap_or_default());
        [a, b, c, d, e, f]
    }
}

/// The batches that no other exceeds in every figure: one of them needs most memory.
pub fn outermost(batches: impl IntoIterator<Item = Lengths>) -> Vec<Lengths> {
    let mut outermost: Vec<([usize; 6], Lengths)> = Vec::new();
    let within = |a: &[usize; 6], b: &[usize; 6]| a.iter().zip(b).all(|(a, b)| a <= b);
    for batch in batches {
        let figures = batch.figures();
        if !outermost.iter().any(|(other, _)| within(&figures, other)) {
            outermost.retain(|(other, _)| !within(other, &figures));
            outermost.push((figures, batch));
        }
    }
    outermost.into_iter().map(|(_, batch)| batch).collect()
}
