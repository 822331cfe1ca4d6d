//! Which tensor of a checkpoint is which parameter of a model.

use std::collections::BTreeMap;
use std::path::Path;

use colrow_tensor::{Error, Result};

use crate::files::{first_ten, shape_text};

/// A parameter that a model expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its key in a checkpoint that `transformers` saves, with the family's prefix: `bert.pooler.dense.weight`.
    pub key: String,
    /// Row-major.
    pub shape: Vec<usize>,
    /// For each dimension the key of `config.json` that it comes from, for hints: `["vocab_size", "hidden_size"]`.
    /// A parameter with a dimension [`NUM_LABELS`] belongs to the head.
    pub dims: &'static [&'static str],
}

/// The name of the dimension that depends on the task.
pub const NUM_LABELS: &str = "num_labels";

impl Wanted {
    fn is_head(&self) -> bool {
        self.dims.contains(&NUM_LABELS)
    }
}

/// How the checkpoints of a family name things.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// As users know it: `BERT`.
    pub name: &'static str,
    /// Before every key but the head's; checkpoints of the bare model lack it: `bert.`.
    pub prefix: &'static str,
    /// Beginnings of keys that a pretraining head leaves, ignored.
    pub ignored_prefixes: &'static [&'static str],
    /// Ends of keys of buffers that are no parameters, ignored.
    pub ignored_suffixes: &'static [&'static str],
    /// A part of keys that only a sibling has, and what to do then.
    pub sibling: Option<(&'static str, &'static str)>,
}

/// BERT.
pub const BERT: Family = Family {
    name: "BERT",
    prefix: "bert.",
    ignored_prefixes: &["cls."],
    ignored_suffixes: &["position_ids"],
    sibling: None,
};

/// T5 v1.0. The embedding is also the encoder's, the decoder's and the head, and some checkpoints repeat it; the published ones hold a
/// bias of the attention to the encoder that has no effect.
pub const T5_RELU: Family = Family {
    name: "T5",
    prefix: "",
    ignored_prefixes: &[
        "encoder.embed_tokens.",
        "decoder.embed_tokens.",
        "lm_head.",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.",
    ],
    ignored_suffixes: &[],
    sibling: Some((
        ".wi_0.",
        "wi_0 and wi_1 are of T5 v1.1 or Flan-T5, whose config.json says feed_forward_proj = \"gated-gelu\"",
    )),
};

/// T5 v1.1.
pub const T5_GATED: Family = Family {
    sibling: Some((".wi.", "wi is of T5 v1.0, whose config.json says feed_forward_proj = \"relu\"")),
    ..T5_RELU
};

/// The outcome of [`match_keys`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    /// For each wanted parameter the checkpoint's key, or `None` where it is to be initialised.
    pub keys: Vec<Option<String>>,
    /// Wanted parameters that the checkpoint lacks.
    pub missing: Vec<String>,
    /// Wanted parameters of the head that the checkpoint has for another number of labels, to be initialised.
    pub replaced: Vec<String>,
    /// Tensors of the checkpoint that belong to no model here, and harmlessly so.
    pub ignored: Vec<String>,
}

impl Matched {
    /// What a user should be told, a line each.
    pub fn warnings(&self) -> Vec<String> {
        let line = |what: &str, keys: &[String]| (!keys.is_empty()).then(|| format!("{what}: {}", keys.join(", ")));
        [
            line("not in the checkpoint, initialised", &self.missing),
            line("in the checkpoint for another number of labels, initialised", &self.replaced),
            line("in the checkpoint but not used", &self.ignored),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Finds each wanted parameter among the `found` tensors (names and shapes) of the checkpoint at `place`.
///
/// Keys match with or without the family's prefix, and with the old names `gamma` and `beta` of layer norms. Tensors that are neither
/// wanted nor known to be harmless, and tensors of another shape, are one error that names them all; `reinit_head` excepts
/// a head for another number of labels.
pub fn match_keys<'a>(
    family: &Family,
    wanted: &[Wanted],
    found: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    reinit_head: bool,
    place: &Path,
) -> Result<Matched> {
    let numbers: BTreeMap<&str, usize> = wanted.iter().enumerate().map(|(i, w)| (w.key.as_str(), i)).collect();
    let mut hits: Vec<Vec<(&str, &[usize])>> = vec![Vec::new(); wanted.len()];
    let (mut ignored, mut unexpected) = (Vec::new(), Vec::new());
    for (name, shape) in found {
        let key = modern(name);
        let number = numbers.get(key.as_str()).or_else(|| numbers.get(format!("{}{key}", family.prefix).as_str()));
        if let Some(&number) = number {
            hits[number].push((name, shape));
        } else if family.ignored_prefixes.iter().any(|p| name.starts_with(p))
            || family.ignored_suffixes.iter().any(|s| name.ends_with(s))
        {
            ignored.push(name.to_string());
        } else {
            unexpected.push(name);
        }
    }
    let in_body = |w: &Wanted| w.key.starts_with(family.prefix);
    if !wanted.iter().zip(&hits).any(|(w, hits)| in_body(w) && !hits.is_empty()) {
        let some = if unexpected.is_empty() { "nothing".to_string() } else { first_ten(&unexpected) };
        return Err(Error::new(format!("this checkpoint shares no parameter with {}; found {some}", family.name))
            .at(place.display())
            .hint("is it of another family?"));
    }

    let mut problems = Vec::new();
    let mut hints = Hints::default();
    let mut matched = Matched { keys: Vec::new(), missing: Vec::new(), replaced: Vec::new(), ignored };
    for (wanted, hits) in wanted.iter().zip(hits) {
        let key = match hits[..] {
            [] => {
                matched.missing.push(wanted.key.clone());
                None
            }
            [(name, shape)] if shape == wanted.shape => Some(name.to_string()),
            [_] if reinit_head && wanted.is_head() => {
                matched.replaced.push(wanted.key.clone());
                None
            }
            [(name, shape)] => {
                problems.push(format!(
                    "{name}: expected shape {}, found {}",
                    shape_text(&wanted.shape),
                    shape_text(shape)
                ));
                hints.add(wanted, shape);
                None
            }
            _ => {
                let names: Vec<_> = hits.iter().map(|(name, _)| *name).collect();
                problems.push(format!("{}: found under several names: {}", wanted.key, first_ten(&names)));
                None
            }
        };
        matched.keys.push(key);
    }
    if !unexpected.is_empty() {
        let plural = if unexpected.len() == 1 { "a tensor" } else { "tensors" };
        let names = first_ten(&unexpected);
        problems.push(format!("found {plural} that {} for this task does not have: {names}", family.name));
    }
    if problems.is_empty() {
        return Ok(matched);
    }
    let error = Error::new(problems.join("\n")).at(place.display());
    let mut hint = hints.text();
    let sibling = family.sibling.filter(|(part, _)| unexpected.iter().any(|name| name.contains(part)));
    if let Some((_, what)) = sibling {
        hint.push(what.to_string());
    } else if !unexpected.is_empty() {
        hint.push("a head for another task has to be removed from the checkpoint first".to_string());
    }
    Err(if hint.is_empty() { error } else { error.hint(hint.join("; ")) })
}

/// A key with today's names for the weight and bias of layer norms.
fn modern(name: &str) -> String {
    for (old, new) in [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")] {
        if let Some(start) = name.strip_suffix(old) {
            return format!("{start}{new}");
        }
    }
    name.to_string()
}

/// Which keys of `config.json` contradict the checkpoint: expected and found sizes by key.
#[derive(Default)]
struct Hints(BTreeMap<&'static str, (usize, usize)>);

impl Hints {
    fn add(&mut self, wanted: &Wanted, found: &[usize]) {
        if wanted.shape.len() != found.len() {
            return;
        }
        for (&dim, (&expected, &found)) in wanted.dims.iter().zip(wanted.shape.iter().zip(found)) {
            if expected != found {
                self.0.entry(dim).or_insert((expected, found));
            }
        }
    }

    fn text(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let sizes: Vec<_> =
            self.0.iter().filter(|(dim, _)| **dim != NUM_LABELS).map(|(dim, (n, _))| format!("{dim} = {n}")).collect();
        if !sizes.is_empty() {
            lines.push(format!("config.json says {}; is this the checkpoint of another size?", sizes.join(", ")));
        }
        if let Some((expected, found)) = self.0.get(NUM_LABELS) {
            lines.push(format!(
                "the checkpoint's classifier has {found} labels, this task {expected}: is this its data? To train a new classifier, drop the old one"
            ));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Vec<Wanted> {
        let one = |key: &str, shape: &[usize], dims| Wanted { key: key.to_string(), shape: shape.to_vec(), dims };
        vec![
            one("bert.embeddings.word_embeddings.weight", &[10, 4], &["vocab_size", "hidden_size"]),
            one("bert.embeddings.LayerNorm.weight", &[4], &["hidden_size"]),
            one("bert.embeddings.LayerNorm.bias", &[4], &["hidden_size"]),
            one("bert.pooler.dense.weight", &[4, 4], &["hidden_size", "hidden_size"]),
            one("classifier.weight", &[2, 4], &[NUM_LABELS, "hidden_size"]),
            one("classifier.bias", &[2], &[NUM_LABELS]),
        ]
    }

    fn run(found: &[(&str, &[usize])], reinit_head: bool) -> Result<Matched> {
        match_keys(&BERT, &wanted(), found.iter().copied(), reinit_head, Path::new("m.safetensors"))
    }

    #[track_caller]
    fn fails(found: &[(&str, &[usize])], expected: &[&str]) {
        let e = run(found, false).unwrap_err().to_string();
        for expected in expected {
            assert!(e.contains(expected), "{e:?} does not contain {expected:?}");
        }
    }

    const WHOLE: [(&str, &[usize]); 6] = [
        ("bert.embeddings.word_embeddings.weight", &[10, 4]),
        ("bert.embeddings.LayerNorm.weight", &[4]),
        ("bert.embeddings.LayerNorm.bias", &[4]),
        ("bert.pooler.dense.weight", &[4, 4]),
        ("classifier.weight", &[2, 4]),
        ("classifier.bias", &[2]),
    ];

    #[test]
    fn a_whole_checkpoint_matches_without_a_word() {
        let matched = run(&WHOLE, false).unwrap();
        assert_eq!(matched.keys, WHOLE.map(|(name, _)| Some(name.to_string())));
        assert!(matched.warnings().is_empty());
    }

    #[test]
    fn a_bare_model_with_old_names_matches() {
        let found: [(&str, &[usize]); 5] = [
            ("embeddings.word_embeddings.weight", &[10, 4]),
            ("embeddings.LayerNorm.gamma", &[4]),
            ("embeddings.LayerNorm.beta", &[4]),
            ("embeddings.position_ids", &[1, 512]),
            ("cls.predictions.bias", &[10]),
        ];
        let matched = run(&found, false).unwrap();
        let keys: Vec<_> = matched.keys.iter().map(Option::as_deref).collect();
        assert_eq!(keys, [Some(found[0].0), Some(found[1].0), Some(found[2].0), None, None, None]);
        assert_eq!(matched.missing, ["bert.pooler.dense.weight", "classifier.weight", "classifier.bias"]);
        assert_eq!(
            matched.warnings(),
            [
                "not in the checkpoint, initialised: bert.pooler.dense.weight, classifier.weight, classifier.bias",
                "in the checkpoint but not used: embeddings.position_ids, cls.predictions.bias",
            ]
        );
    }

    #[test]
    fn a_misshapen_tensor_is_named_with_the_config_key() {
        let mut found = WHOLE;
        found[1].1 = &[8];
        assert_eq!(
            run(&found, false).unwrap_err().to_string(),
            "bert.embeddings.LayerNorm.weight: expected shape (4), found (8)\n  in m.safetensors\n  \
             hint: config.json says hidden_size = 4; is this the checkpoint of another size?"
        );
    }

    #[test]
    fn all_misshapen_and_unexpected_tensors_are_in_one_error() {
        let mut found = WHOLE.to_vec();
        found[0].1 = &[11, 8];
        found[3].1 = &[4];
        found.push(("qa_outputs.weight", &[2, 4]));
        fails(
            &found,
            &[
                "word_embeddings.weight: expected shape (10, 4), found (11, 8)\n",
                "bert.pooler.dense.weight: expected shape (4, 4), found (4)\n",
                "found a tensor that BERT for this task does not have: qa_outputs.weight\n",
                "config.json says hidden_size = 4, vocab_size = 10;",
                "another task",
            ],
        );
    }

    #[test]
    fn many_unexpected_tensors_are_counted() {
        let names: Vec<_> = (0..12).map(|i| format!("bert.extra.{i}")).collect();
        let mut found = WHOLE.to_vec();
        found.extend(names.iter().map(|name| (name.as_str(), &[1][..])));
        fails(&found, &["bert.extra.0, bert.extra.1", "bert.extra.9, … (12 in all)"]);
    }

    #[test]
    fn another_number_of_labels_is_an_error_or_a_new_head() {
        let mut found = WHOLE;
        found[4].1 = &[3, 4];
        found[5].1 = &[3];
        fails(&found, &["classifier.weight: expected shape (2, 4), found (3, 4)", "has 3 labels, this task 2"]);
        let matched = run(&found, true).unwrap();
        assert_eq!(matched.replaced, ["classifier.weight", "classifier.bias"]);
        assert_eq!(matched.keys[3..], [Some("bert.pooler.dense.weight".to_string()), None, None]);
        assert_eq!(matched.warnings().len(), 1);
        found[3].1 = &[5, 5];
        assert!(run(&found, true).unwrap_err().what().contains("pooler"));
    }

    #[test]
    fn a_checkpoint_of_another_family_is_named() {
        fails(
            &[("encoder.block.0.layer.0.weight", &[4]), ("classifier.bias", &[2])],
            &["shares no parameter with BERT; found encoder.block.0.layer.0.weight", "another family?"],
        );
        fails(&[], &["found nothing"]);
    }

    #[test]
    fn a_parameter_under_two_names_is_named() {
        let mut found = WHOLE.to_vec();
        found.push(("embeddings.LayerNorm.gamma", &[4]));
        fails(&found, &["several names: bert.embeddings.LayerNorm.weight, embeddings.LayerNorm.gamma"]);
    }
}
