//! Which tensor of a checkpoint is which parameter of a model.

use std::collections::BTreeMap;
use std::path::Path;

use colrow_tensor::{Error, Result};

use crate::family::{Family, Keys};
use crate::files::{first_ten, shape_text};
use crate::registry::NUM_LABELS;

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

impl Keys {
    fn is_body(&self, key: &str) -> bool {
        let prefixed = key.strip_prefix(self.prefix).filter(|_| !self.prefix.is_empty());
        prefixed.is_some() || self.body.iter().any(|b| key.starts_with(b))
    }

    fn is_head(&self, wanted: &Wanted) -> bool {
        wanted.dims.contains(&NUM_LABELS) || self.head.iter().any(|h| wanted.key.starts_with(h))
    }
}

/// What is initialised anew instead of being an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anew {
    /// A head that the checkpoint has for another number of labels.
    pub head: bool,
    /// What the checkpoint lacks of the body.
    pub body: bool,
}

/// The outcome of [`match_keys`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    /// For each wanted parameter the checkpoint's key, or `None` where it is to be initialised.
    pub keys: Vec<Option<String>>,
    /// Wanted parameters that the checkpoint lacks, to be initialised.
    pub missing: Vec<String>,
    /// Wanted parameters of the head that the checkpoint has for another number of labels, to be initialised.
    pub replaced: Vec<String>,
    /// Tensors of the checkpoint that belong to other heads.
    pub ignored: Vec<String>,
    /// Tensors of the checkpoint that have to hold the same numbers.
    pub tied: Vec<Tied>,
}

/// Two tensors of a checkpoint that are one in the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tied {
    /// Their keys in the checkpoint.
    pub keys: [String; 2],
    /// What to do if they differ.
    pub hint: &'static str,
}

impl Matched {
    /// What a user should be told, a line each.
    pub fn warnings(&self) -> Vec<String> {
        let line = |what: &str, keys: &[String]| (!keys.is_empty()).then(|| format!("{what}: {}", first_ten(keys)));
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
/// Keys match with or without the family's prefix, without what wrappers add, and with the old names `gamma` and `beta` of layer norms.
/// Tensors of other heads are ignored. Tensors of the body that are not wanted, that lack or that have another shape are one error that
/// names them all; what of it is to be made `anew` instead is excepted.
pub fn match_keys<'a>(
    family: &Family,
    wanted: &[Wanted],
    found: impl IntoIterator<Item = (&'a str, &'a [usize])>,
    anew: Anew,
    place: &Path,
) -> Result<Matched> {
    let keys = &family.keys;
    let numbers: BTreeMap<&str, usize> = wanted.iter().enumerate().map(|(i, w)| (w.key.as_str(), i)).collect();
    let mut hits: Vec<Vec<(&str, &[usize])>> = vec![Vec::new(); wanted.len()];
    let mut others = BTreeMap::new();
    for (name, shape) in found {
        let key = plain(name);
        let number = numbers.get(key.as_str()).or_else(|| numbers.get(format!("{}{key}", keys.prefix).as_str()));
        match number {
            Some(&number) => hits[number].push((name, shape)),
            None => _ = others.insert(key, (name, shape)),
        }
    }
    let (mut ignored, mut unexpected) = (Vec::new(), Vec::new());
    let is_alias = |key: &str| keys.aliases.iter().any(|a| a.tied.is_some() && a.others.contains(&key));
    for (key, &(name, _)) in others.iter().filter(|(key, _)| !is_alias(key)) {
        if keys.ignored.iter().any(|end| key.ends_with(end)) {
        } else if keys.is_body(key) {
            unexpected.push(name);
        } else {
            ignored.push(name.to_string());
        }
    }
    if !wanted.iter().zip(&hits).any(|(w, hits)| keys.is_body(&w.key) && !hits.is_empty()) {
        let names: Vec<_> = others.values().map(|(name, _)| *name).collect();
        let some = if names.is_empty() { "nothing".to_string() } else { first_ten(&names) };
        return Err(Error::new(format!("this checkpoint shares no parameter with {}; found {some}", family.name))
            .at(place.display())
            .hint("is it of another family?"));
    }

    let mut tied = Vec::new();
    for alias in keys.aliases {
        let Some(&number) = numbers.get(alias.key) else { continue };
        if hits[number].is_empty() {
            let of = |&other: &&str| match numbers.get(other) {
                Some(&other) => hits[other].first().copied(),
                None => others.get(other).copied(),
            };
            let first = alias.others.iter().find_map(of);
            hits[number].extend(first);
        }
        if let (Some(hint), Some(&(name, _))) = (alias.tied, hits[number].first()) {
            let copies = alias.others.iter().filter(|o| !numbers.contains_key(*o)).filter_map(|o| others.get(*o));
            let copies = copies.filter(|c| c.0 != name);
            tied.extend(copies.map(|c| Tied { keys: [name.to_string(), c.0.to_string()], hint }));
        }
    }

    let (mut problems, mut misshapen) = (Vec::new(), Vec::new());
    let mut lacking = Vec::new();
    let mut hints = Hints::default();
    let mut matched = Matched { keys: Vec::new(), missing: Vec::new(), replaced: Vec::new(), ignored, tied };
    for (wanted, hits) in wanted.iter().zip(hits) {
        let key = match hits[..] {
            [] => {
                let missing = if anew.body || keys.is_head(wanted) { &mut matched.missing } else { &mut lacking };
                missing.push(wanted.key.clone());
                None
            }
            [(name, shape)] if shape == wanted.shape => Some(name.to_string()),
            [_] if anew.head && wanted.dims.contains(&NUM_LABELS) => {
                matched.replaced.push(wanted.key.clone());
                None
            }
            [(name, shape)] => {
                misshapen.push(format!(
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
    let more = misshapen.len().saturating_sub(MOST_TOLD);
    misshapen.truncate(MOST_TOLD);
    problems.splice(..0, misshapen);
    if more > 0 {
        problems.push(format!("and {more} more tensors of other shapes"));
    }
    if !unexpected.is_empty() {
        let plural = if unexpected.len() == 1 { "a tensor" } else { "tensors" };
        let names = first_ten(&unexpected);
        problems.push(format!("found {plural} that a {} of this configuration does not have: {names}", family.name));
    }
    if !lacking.is_empty() {
        problems.push(format!("the checkpoint lacks {}", first_ten(&lacking)));
    }
    if problems.is_empty() {
        return Ok(matched);
    }
    let error = Error::new(problems.join("\n")).at(place.display());
    let mut hint = hints.text();
    // what a sibling has, and this model nowhere
    let is_sibling =
        |part: &str| unexpected.iter().any(|name| name.contains(part)) && !wanted.iter().any(|w| w.key.contains(part));
    if let Some(sibling) = keys.siblings.iter().find(|sibling| is_sibling(sibling.part)) {
        hint.push(sibling.hint.to_string());
    } else if !unexpected.is_empty() {
        hint.push("is config.json of another checkpoint?".to_string());
    } else if !lacking.is_empty() {
        hint.push("is it whole? To train with random numbers there, set model.init_missing = true".to_string());
    }
    Err(if hint.is_empty() { error } else { error.hint(hint.join("; ")) })
}

/// Tensors of another shape that are told one by one: a checkpoint of another size has hundreds.
const MOST_TOLD: usize = 10;

/// What wrappers put between the parts of a key: data parallelism, compilation, sharding, activation checkpoints.
const WRAPPERS: [&str; 4] = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// What other programs' models put before a key: `model.`, `0.auto_model.`.
const HOLDERS: [&str; 3] = ["model", "0", "auto_model"];

/// A key without what wrappers add, and with today's names for the weight and bias of layer norms.
fn plain(name: &str) -> String {
    let parts = name.split('.').filter(|part| !WRAPPERS.contains(part)).skip_while(|part| HOLDERS.contains(part));
    let name = parts.collect::<Vec<_>>().join(".");
    for (old, new) in [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")] {
        if let Some(start) = name.strip_suffix(old) {
            return format!("{start}{new}");
        }
    }
    name
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
        let size = |dim: &str, n: usize| match dim.contains("heads") {
            true => format!("{dim} times the size of a head = {n}"),
            false => format!("{dim} = {n}"),
        };
        let sizes: Vec<_> =
            self.0.iter().filter(|(dim, _)| **dim != NUM_LABELS).map(|(dim, (n, _))| size(dim, *n)).collect();
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
    use crate::families::{bert, t5};

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

    fn run(found: &[(&str, &[usize])], head: bool) -> Result<Matched> {
        run_with(found, Anew { head, body: false })
    }

    fn run_with(found: &[(&str, &[usize])], anew: Anew) -> Result<Matched> {
        match_keys(&bert::FAMILY, &wanted(), found.iter().copied(), anew, Path::new("m.safetensors"))
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
        let found: [(&str, &[usize]); 6] = [
            ("embeddings.word_embeddings.weight", &[10, 4]),
            ("embeddings.LayerNorm.gamma", &[4]),
            ("embeddings.LayerNorm.beta", &[4]),
            ("embeddings.position_ids", &[1, 512]),
            ("cls.predictions.bias", &[10]),
            ("loss_fct.weight", &[2]),
        ];
        let matched = run(&found, false).unwrap();
        let keys: Vec<_> = matched.keys.iter().map(Option::as_deref).collect();
        assert_eq!(keys, [Some(found[0].0), Some(found[1].0), Some(found[2].0), None, None, None]);
        assert_eq!(matched.missing, ["bert.pooler.dense.weight", "classifier.weight", "classifier.bias"]);
        assert_eq!(
            matched.warnings(),
            [
                "not in the checkpoint, initialised: bert.pooler.dense.weight, classifier.weight, classifier.bias",
                "in the checkpoint but not used: cls.predictions.bias, loss_fct.weight",
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
    fn of_many_misshapen_tensors_the_first_are_told() {
        let key = |i: usize| format!("bert.layer.{i:02}.weight");
        let one = |i| Wanted { key: key(i), shape: vec![4], dims: &["hidden_size"] };
        for (count, more) in [(MOST_TOLD, None), (MOST_TOLD + 3, Some("\nand 3 more tensors of other shapes\n"))] {
            let wanted: Vec<_> = (0..count).map(one).collect();
            let found: Vec<_> = wanted.iter().map(|w| (w.key.as_str(), &[8][..])).collect();
            let place = Path::new("m.safetensors");
            let anew = Anew { head: false, body: false };
            let e = match_keys(&bert::FAMILY, &wanted, found, anew, place).unwrap_err().to_string();
            assert_eq!(e.matches("expected shape (4), found (8)").count(), MOST_TOLD, "{e}");
            assert_eq!(e.contains(" more tensors"), more.is_some(), "{e}");
            assert!(more.is_none_or(|more| e.contains(more)), "{e}");
        }
    }

    #[test]
    fn all_misshapen_and_unexpected_tensors_are_in_one_error() {
        let mut found = WHOLE.to_vec();
        found[0].1 = &[11, 8];
        found[3].1 = &[4];
        found.push(("bert.encoder.layer.0.output.dense.weight", &[4, 4]));
        fails(
            &found,
            &[
                "word_embeddings.weight: expected shape (10, 4), found (11, 8)\n",
                "bert.pooler.dense.weight: expected shape (4, 4), found (4)\n",
                "a tensor that a BERT of this configuration does not have: bert.encoder.layer.0.output.dense.weight\n",
                "config.json says hidden_size = 4, vocab_size = 10;",
                "of another checkpoint?",
            ],
        );
    }

    #[test]
    fn many_unexpected_tensors_are_counted() {
        let names: Vec<_> = (0..12).map(|i| format!("bert.extra.{i}")).collect();
        let mut found = WHOLE.to_vec();
        found.extend(names.iter().map(|name| (name.as_str(), &[1][..])));
        fails(&found, &["bert.extra.0, bert.extra.1", "bert.extra.7, … (12 in all)"]);
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
    fn what_the_body_lacks_is_named_or_made_anew() {
        let some = [WHOLE[0], WHOLE[1]];
        fails(&some, &["the checkpoint lacks bert.embeddings.LayerNorm.bias\n", "model.init_missing = true"]);
        let matched = run_with(&some, Anew { head: false, body: true }).unwrap();
        assert_eq!(matched.missing, WHOLE[2..].iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }

    #[test]
    fn what_wrappers_add_is_taken_off() {
        for wrapped in ["module.", "_orig_mod.", "model.", "0.auto_model.", "module._orig_mod.model.", "model.module."]
        {
            let names = WHOLE.map(|(name, _)| format!("{wrapped}{name}"));
            let found: Vec<_> = names.iter().zip(WHOLE).map(|(name, (_, shape))| (name.as_str(), shape)).collect();
            let matched = run(&found, false).unwrap();
            assert_eq!(matched.keys, names.map(Some), "{wrapped}");
            assert!(matched.warnings().is_empty());
        }
        let within = "bert.pooler._orig_mod.dense._fsdp_wrapped_module.weight";
        assert_eq!(plain(within), "bert.pooler.dense.weight");
    }

    #[test]
    fn a_masked_language_models_decoder_is_its_embedding() {
        let mut found = WHOLE;
        found[0].0 = "cls.predictions.decoder.weight";
        assert_eq!(run(&found, false).unwrap().keys[0].as_deref(), Some(found[0].0));
    }

    #[test]
    fn the_embedding_of_a_t5_goes_by_four_names() {
        let [shared, norm] = ["shared.weight", "encoder.final_layer_norm.weight"];
        let [encoder, decoder, head] = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"];
        let run = |wanted: &[&str], found: &[&'static str]| {
            let dims = &["vocab_size", "d_model"];
            let wanted: Vec<_> =
                wanted.iter().map(|&key| Wanted { key: key.to_owned(), shape: vec![10, 4], dims }).collect();
            let found = found.iter().map(|&name| (name, &[10, 4][..]));
            match_keys(&t5::FAMILY, &wanted, found, Anew::default(), Path::new("m.safetensors"))
        };
        let pairs = |tied: &[Tied]| tied.iter().map(|t| t.keys.clone()).collect::<Vec<_>>();
        let same = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        let tied = [shared, norm];
        for only in [encoder, decoder, head] {
            let matched = run(&tied, &[norm, only]).unwrap();
            assert_eq!((matched.keys[0].as_deref(), pairs(&matched.tied)), (Some(only), vec![]));
            assert!(matched.warnings().is_empty());
        }
        let matched = run(&tied, &[norm, head, decoder, encoder]).unwrap();
        assert_eq!(matched.keys[0].as_deref(), Some(encoder));
        assert_eq!(pairs(&matched.tied), [same(encoder, decoder), same(encoder, head)]);
        assert_eq!(pairs(&run(&tied, &[norm, head, shared]).unwrap().tied), [same(shared, head)]);
        // a head of its own may differ, and is the embedding only if nothing else is
        let untied = [shared, norm, head];
        let matched = run(&untied, &[norm, head, decoder]).unwrap();
        assert_eq!(matched.keys, [decoder, norm, head].map(|name| Some(name.to_owned())));
        assert!(matched.tied.is_empty());
        assert_eq!(run(&untied, &[norm, head]).unwrap().keys[0].as_deref(), Some(head));
        assert_eq!(run(&untied, &[norm, encoder]).unwrap().keys[2].as_deref(), Some(encoder));
        assert!(
            run(&untied, &[norm]).unwrap_err().what().ends_with("the checkpoint lacks shared.weight, lm_head.weight")
        );
    }

    #[test]
    fn a_parameter_under_two_names_is_named() {
        let mut found = WHOLE.to_vec();
        found.push(("embeddings.LayerNorm.gamma", &[4]));
        fails(&found, &["several names: bert.embeddings.LayerNorm.weight, embeddings.LayerNorm.gamma"]);
    }
}
