//! A set of examples as tokens: what the tokenizer makes of them, and batches are drawn from. It knows no tokenizer.

use super::Labels;

/// The tokens of a set of examples, end to end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenisedSet {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Token type of each token: 0, or 1 in the second text of a pair.
    pub types: Vec<u8>,
    /// Whether the tokenizer added the token, such as `[CLS]` and `[SEP]`.
    pub special: Vec<bool>,
    /// Example `i` has the tokens `bounds[i]..bounds[i + 1]`, of which there is at least one.
    pub bounds: Vec<usize>,
    /// The labels, if they are known.
    pub labels: Option<Labels>,
    /// What each example's text is to be answered with, where the objective has texts as targets.
    pub targets: Option<Targets>,
    /// How much each token counts where the loss is over tokens; see [`Tokens::weight`](colrow_models::tokens::Tokens::weight).
    pub weight: Option<Vec<f32>>,
    /// Number of examples that were cut to the maximum length.
    pub truncated: usize,
    /// What the user should know: of truncation, of unknown texts.
    pub warnings: Vec<String>,
}

/// The tokens of a set's targets, end to end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Example `i` has the tokens `bounds[i]..bounds[i + 1]`, of which there is at least one.
    pub bounds: Vec<usize>,
    /// How much each token counts in the loss; without it each as 1.
    pub weight: Option<Vec<f32>>,
}

impl TokenisedSet {
    /// Number of examples.
    pub fn len(&self) -> usize {
        self.bounds.len().saturating_sub(1)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tokens of each example.
    pub fn lengths(&self) -> Vec<u32> {
        self.bounds.windows(2).map(|w| (w[1] - w[0]) as u32).collect()
    }

    /// The lengths of the examples' targets, where there are targets.
    pub fn target_lengths(&self) -> Option<Vec<u32>> {
        let targets = self.targets.as_ref()?;
        Some(targets.bounds.windows(2).map(|w| (w[1] - w[0]) as u32).collect())
    }
}
