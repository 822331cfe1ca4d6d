//! A data set's first examples as the model gets them.

use std::ops::Range;

use colrow_tensor::Result;
use serde::Serialize;

use crate::data::Examples;
use crate::objective::{Causal, Shown};
use crate::prepare::Sources;

/// An example as the model gets it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Preview {
    /// Where it stands: `line 3`.
    pub place: String,
    /// Its text; of a pair both, with a line break between them.
    pub text: String,
    /// Its label, where there are labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its token ids.
    pub ids: Vec<u32>,
    /// How much each counts in the loss, where the loss is over tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Vec<f32>>,
    /// The characters of the text that count, first and behind the last, where the loss is over tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spans: Option<Vec<Range<usize>>>,
    /// Number of tokens.
    pub tokens: usize,
    /// Number of tokens that count, where the loss is over tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<usize>,
    /// Tokens that were cut off.
    pub dropped: usize,
    /// The text in pieces, with the tokens that were added, and whether each piece counts; what is cut is not there.
    #[serde(skip)]
    pub pieces: Vec<(String, bool)>,
}

impl Sources {
    /// The first `n` training examples.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn preview(&self, n: usize) -> Result<Vec<Preview>> {
        let first = || 0..n.min(self.train.rows.len());
        match self.task.is_of_tokens() {
            true => first().map(|i| self.of_tokens(i)).collect(),
            false => first().map(|i| self.labelled(i)).collect(),
        }
    }

    fn of_tokens(&self, i: usize) -> Result<Preview> {
        let causal = Causal::of(&self.config, &self.tokeniser);
        let shown = causal.show(&self.tokeniser, &self.train.rows[i], self.recipe.data.max_length);
        let Shown { text, ids, weights, places, dropped } = shown.map_err(|e| self.train.place(e, i))?;
        let (mut pieces, mut end): (Vec<(String, bool)>, usize) = (Vec::new(), 0);
        let mut spans: Vec<Range<usize>> = Vec::new();
        for ((&id, place), &weight) in ids.iter().zip(&places).zip(&weights) {
            let counts = weight > 0.0;
            // also what the tokenizer passes over; a character of several tokens is the first one's
            let piece = match place.is_empty() {
                true => self.tokeniser.token(id).unwrap_or_default(),
                false => text.get(end..place.end).unwrap_or_default().to_owned(),
            };
            end = end.max(place.end);
            match spans.last_mut() {
                _ if !counts || place.is_empty() => {}
                Some(last) if last.end >= place.start => last.end = last.end.max(place.end),
                _ => spans.push(place.clone()),
            }
            match pieces.last_mut() {
                Some((last, same)) if *same == counts => last.push_str(&piece),
                _ => pieces.push((piece, counts)),
            }
        }
        let character = |byte: usize| text.get(..byte).map_or(0, |before| before.chars().count());
        let spans = spans.into_iter().map(|span| character(span.start)..character(span.end)).collect();
        Ok(Preview {
            place: self.train.line(i),
            label: None,
            tokens: ids.len(),
            labels: Some(weights.iter().filter(|&&weight| weight > 0.0).count()),
            text,
            ids,
            weights: Some(weights),
            spans: Some(spans),
            dropped,
            pieces,
        })
    }

    fn labelled(&self, i: usize) -> Result<Preview> {
        let example = self.train.rows[i].clone();
        let text = [Some(&example.text), example.pair.as_ref()].into_iter().flatten().cloned().collect::<Vec<_>>();
        let text = text.join("\n");
        let label = example.label.clone();
        let one: Examples = self.train.with_rows(vec![example]);
        let cut = self.objective.tokenise(&self.tokeniser, &one, None, self.recipe.data.max_length)?;
        let whole = self.objective.tokenise(&self.tokeniser, &one, None, usize::MAX >> 1)?;
        Ok(Preview {
            place: self.train.line(i),
            label,
            pieces: vec![(text.clone(), false)],
            text,
            weights: None,
            spans: None,
            tokens: cut.ids.len(),
            labels: None,
            dropped: whole.ids.len() - cut.ids.len(),
            ids: cut.ids,
        })
    }
}
