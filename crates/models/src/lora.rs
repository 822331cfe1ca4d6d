//! LoRA (Hu et al. 2022): which linears are adapted, and what becomes of adapters.

mod patterns;

use std::collections::BTreeSet;

use colrow_autograd::{LowRank, glob_matches};
use colrow_tensor::rng::Key;
use colrow_tensor::{Error, Result};

pub use patterns::Patterns;
pub(crate) use patterns::matches;

use crate::model::Model;
use crate::registry::{Entry, Init, Part};

pub(crate) const A: &str = ".lora_A.weight";
pub(crate) const B: &str = ".lora_B.weight";

/// Settings of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rows of A and columns of B, at least 1.
    pub lora_rank: usize,
    /// The adapter's output is multiplied by alpha/rank, or alpha/√rank if rank-stabilised.
    pub alpha: f64,
    /// Probability that an element of the input is dropped on its way to A.
    pub dropout: f64,
    /// Whether the factor is alpha/√rank (Kalajdzievski 2023).
    pub rank_stabilised: bool,
    /// Which linears: names of modules, or their ends ("query"), or globs; see [`names_module`].
    pub targets: Vec<String>,
    /// Other modules that are trained and saved whole, with all that they hold, named in the same way: the head.
    pub modules_to_save: Vec<String>,
    /// Modules with another rank.
    pub rank_pattern: Patterns<usize>,
    /// Modules with another alpha.
    pub alpha_pattern: Patterns<f64>,
}

impl Default for LoraConfig {
    /// PEFT's defaults, and no module.
    fn default() -> Self {
        Self {
            lora_rank: 8,
            alpha: 8.0,
            dropout: 0.0,
            rank_stabilised: false,
            targets: Vec::new(),
            modules_to_save: Vec::new(),
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
        }
    }
}

impl LoraConfig {
    /// The rank of a module's adapter.
    pub fn rank_of(&self, module: &str) -> usize {
        self.rank_pattern.get(module).unwrap_or(self.lora_rank)
    }

    /// The factor of the output of a module's adapter.
    pub fn scale_of(&self, module: &str) -> f64 {
        let (rank, alpha) = (self.rank_of(module) as f64, self.alpha_pattern.get(module).unwrap_or(self.alpha));
        alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }
}

/// Whether `pattern` names the module of a checkpoint: its whole name or an end of it after a dot, where `*` stands for anything.
pub fn names_module(pattern: &str, module: &str) -> bool {
    glob_matches(pattern, module) || glob_matches(&format!("*.{pattern}"), module)
}

/// Whether a key of a registry is one of an adapter.
pub fn is_adapter_key(key: &str) -> bool {
    key.ends_with(A) || key.ends_with(B)
}

/// Whether a key of a registry is an adapter's A.
pub fn is_a_key(key: &str) -> bool {
    key.ends_with(A)
}

/// Whether a key belongs to one of the modules that are saved whole, or to a module within one.
pub fn is_saved_whole(modules_to_save: &[String], key: &str) -> bool {
    let mut holders = key.rmatch_indices('.').map(|(end, _)| &key[..end]);
    holders.any(|module| modules_to_save.iter().any(|pattern| names_module(pattern, module)))
}

/// Adds adapters to the linears that `config` names. A is uniform in ±1/√in from `seed`, as PEFT initialises it, and B zero, so that
/// the model computes what it did.
///
/// # Errors
/// A pattern that names no linear; no linear to adapt; an embedding to save that is the head's weight too, which PEFT would load into the
/// embedding alone.
pub fn adapt(model: &mut Model, config: &LoraConfig, seed: u64) -> Result<()> {
    let head = model.language().map(|language| language.head().weight);
    let is_tied = |e: &&Entry| Some(e.param) == head && e.key != "lm_head.weight";
    let tied = model.registry.entries.iter().find(is_tied);
    if let Some(Entry { key, .. }) = tied.filter(|e| is_saved_whole(&config.modules_to_save, &e.key)) {
        return Err(Error::usage(format!(
            "modules_to_save: {key} is the head's weight too (tie_word_embeddings), and PEFT loads it into the embedding alone"
        ))
        .hint("adapt the head (lora.targets with \"lm_head\"), or train all of the model (train.method = \"full\")"));
    }
    let (mut linears, registry) = model.linears_mut();
    for pattern in &config.targets {
        let modules = || linears.iter().flat_map(|d| d.modules()).map(|(m, _)| m.as_str());
        if !modules().any(|m| names_module(pattern, m)) {
            let nearest: BTreeSet<&str> = modules().filter_map(|m| m.rsplit('.').next()).collect();
            let mut nearest: Vec<_> = nearest.into_iter().collect();
            nearest.sort_by(|a, b| strsim::jaro_winkler(b, pattern).total_cmp(&strsim::jaro_winkler(a, pattern)));
            return Err(Error::usage(format!("lora.targets: `{pattern}` names no linear of this model"))
                .hint(format!("linears end in {}", nearest.join(", "))));
        }
    }
    let before = registry.entries.len();
    for dense in &mut linears {
        let is_target = |m: &str| {
            config.targets.iter().any(|p| names_module(p, m))
                && !is_saved_whole(&config.modules_to_save, &format!("{m}.weight"))
        };
        let modules: Vec<_> = dense.modules().iter().filter(|(m, _)| is_target(m)).cloned().collect();
        if modules.is_empty() {
            continue;
        }
        let input = dense.inputs();
        let init = Init::Uniform(1.0 / (input as f64).sqrt());
        // what is stacked has one rank and one factor; `read` fits others to them, so the factor is not 0
        let rank = modules.iter().map(|(m, _)| config.rank_of(m)).max().expect("there is a module");
        let scale = modules.iter().map(|(m, _)| config.scale_of(m)).find(|&s| s != 0.0).unwrap_or(1.0);
        let a = modules.iter().map(|(m, _)| Part { key: format!("{m}{A}"), rows: rank, dims: &[], init });
        let a = registry.add_stacked(&a.collect::<Vec<_>>(), &[input]);
        let b = modules
            .iter()
            .map(|(m, rows)| (registry.add(&format!("{m}{B}"), &[rows.len(), rank], &[], Init::Zeros), rows.start));
        let b: Vec<_> = b.collect();
        // frozen or not, they are no weights of the base
        for id in b.iter().map(|(b, _)| *b).chain([a]) {
            registry.params[id].matrix = false;
        }
        *dense.adapter_mut() = Some(LowRank { a, b, scale, dropout: config.dropout as f32 });
    }
    if registry.entries.len() == before {
        return Err(Error::usage("lora.targets: names no linear but those that train.modules_to_save trains whole")
            .hint("name others, or use train.method = \"bitfit\" to train the head and the biases"));
    }
    init(model, seed);
    Ok(())
}

/// Initialises all adapters from `seed`, as [`adapt`] does.
pub fn init(model: &mut Model, seed: u64) {
    let (registry, key) = (&mut model.registry, Key::new(seed).named("lora"));
    for i in 0..registry.entries.len() {
        if is_adapter_key(&registry.entries[i].key) {
            registry.init(i, key);
        }
    }
}

/// Adds every adapter's `s·B·A` to its weight and removes it: the model computes the same without it. A head that is tied to the embedding gets
/// a weight of its own first, and says whether one did.
pub fn merge(model: &mut Model) -> bool {
    let (linears, registry) = model.linears_mut();
    let mut unties = false;
    for dense in linears {
        let Some(LowRank { a, b, scale, .. }) = dense.adapter_mut().take() else { continue };
        let a = registry.params[a].value.dense().to_f64();
        let own = format!("{}.weight", dense.modules()[0].0);
        if registry.entries.iter().any(|e| e.param == dense.weight() && e.first == 0 && e.key != own) {
            dense.set_weight(registry.add_copy(&own, dense.weight()));
            unties = true;
        }
        let (weight, input) = (dense.weight(), dense.inputs());
        for (j, (b, first)) in b.into_iter().enumerate() {
            let b = registry.params[b].value.dense();
            let (out, rank, b) = (b.rows(), b.cols(), b.to_f64());
            let a = &a[j * rank * input..];
            registry.edit_rows(weight, first..first + out, |i, w| {
                for (c, w) in w.iter_mut().enumerate() {
                    let sum: f64 = (0..rank).map(|r| b[i * rank + r] * a[r * input + c]).sum();
                    *w = (f64::from(*w) + scale * sum) as f32;
                }
            });
        }
    }
    registry.entries.retain(|e| !is_adapter_key(&e.key));
    if unties {
        model.config.architecture.untie();
    }
    unties
}

#[cfg(test)]
pub(crate) mod tests {
    use colrow_tensor::{DType, Device};

    use std::path::Path;

    use super::*;
    use crate::config::Config;
    use crate::registry::Registry;

    pub(crate) fn model() -> Model {
        let json = br#"{"model_type":"bert","hidden_size":6,"num_hidden_layers":2,"num_attention_heads":2,
            "intermediate_size":10,"vocab_size":5}"#;
        let config = Config::from_json(json, Path::new("config.json")).unwrap();
        let mut model = Model::new(config, &Device::cpu(), DType::F32);
        model.init(1);
        model
    }

    pub(crate) fn numbers(registry: &Registry, i: usize) -> Vec<f64> {
        let entry = &registry.entries[i];
        registry.params[entry.param].value.dense().to_f64()[entry.range()].to_vec()
    }

    pub(crate) fn settings(targets: &[&str]) -> LoraConfig {
        LoraConfig {
            lora_rank: 2,
            alpha: 4.0,
            targets: targets.iter().map(|&t| t.to_owned()).collect(),
            modules_to_save: vec!["classifier".to_owned()],
            ..LoraConfig::default()
        }
    }

    fn adapted(targets: &[&str]) -> Vec<String> {
        let mut model = model();
        adapt(&mut model, &settings(targets), 1).unwrap();
        model.registry.entries.iter().filter_map(|e| e.key.strip_suffix(A).map(str::to_owned)).collect()
    }

    #[test]
    fn patterns_name_modules_as_in_peft() {
        let query = |i: usize| format!("bert.encoder.layer.{i}.attention.self.query");
        assert_eq!(adapted(&["query"]), [query(0), query(1)]);
        assert_eq!(adapted(&["layer.1.attention.self.query"]), [query(1)]);
        assert_eq!(adapted(&[&query(0)]), [query(0)]);
        assert_eq!(adapted(&["layer.0.*.dense", "pooler.dense"]).len(), 4);
        // the head is trained whole, so it has no adapter
        assert_eq!(adapted(&["*"]).len(), 2 * 6 + 1);
        assert!(!names_module("uery", &query(0)) && !names_module("que", &query(0)));
    }

    #[test]
    fn containers_are_saved_whole() {
        let whole = |modules: &[&str], key: &str| {
            is_saved_whole(&modules.iter().map(|&m| m.to_owned()).collect::<Vec<_>>(), key)
        };
        for pattern in ["pooler", "bert.pooler", "pooler.dense", "*ooler"] {
            assert!(whole(&[pattern], "bert.pooler.dense.weight"), "{pattern}");
        }
        assert!(!whole(&["ooler", "dense.weight", "classifier"], "bert.pooler.dense.weight"));
        // nothing of it has an adapter
        let mut model = model();
        let settings = LoraConfig { modules_to_save: vec!["classifier".into(), "pooler".into()], ..settings(&["*"]) };
        adapt(&mut model, &settings, 1).unwrap();
        assert!(!model.registry.entries.iter().any(|e| e.key.contains("pooler") && is_adapter_key(&e.key)));
    }

    #[test]
    fn an_unknown_target_is_told_the_nearest() {
        let error = adapt(&mut model(), &settings(&["querry"]), 1).unwrap_err().to_string();
        assert!(error.contains("`querry` names no linear") && error.contains("linears end in query, "), "{error}");
    }

    #[test]
    fn an_adapter_adapts_something() {
        for targets in [&[][..], &["classifier"]] {
            let error = adapt(&mut model(), &settings(targets), 1).unwrap_err().to_string();
            assert!(error.contains("names no linear but those"), "{error}");
        }
    }

    #[test]
    fn a_fresh_adapter_changes_nothing_and_depends_on_the_seed() {
        let of = |seed| {
            let mut model = model();
            adapt(&mut model, &settings(&["query"]), seed).unwrap();
            let entry = |end: &str| model.registry.entries.iter().position(|e| e.key.ends_with(end)).unwrap();
            let part = |i: usize| numbers(&model.registry, i);
            (part(entry(A)), part(entry(B)))
        };
        let (a, b) = of(1);
        assert!(b.iter().all(|&x| x == 0.0));
        let bound = 1.0 / 6_f64.sqrt();
        assert!(a.iter().all(|x| x.abs() <= bound) && a.iter().any(|x| x.abs() > 0.5 * bound));
        assert!(a == of(1).0 && a != of(2).0);
    }
}
