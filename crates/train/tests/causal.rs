//! Texts that a model goes on with: what a step's loss is a mean of, and what is planned for it.

use std::path::Path;
use std::sync::Arc;

use colrow_autograd::{Head, ParamId, Policy, RowsOf, Tape, Var};
use colrow_models::config::Config;
use colrow_models::decode::{CacheSize, Decoder};
use colrow_models::family::{Architecture, Family, HeadKind, Keys};
use colrow_models::layers::Dense;
use colrow_models::model::Model;
use colrow_models::net::{Language, Net, Site, SiteKind};
use colrow_models::registry::{Init, Registry};
use colrow_models::tokens::Tokens;
use colrow_tensor::{Class, DType, Device};
use colrow_train::data::{Batch, BatchBy, Lengths, TokenisedSet};
use colrow_train::evaluate::evaluate;
use colrow_train::machine::Resident;
use colrow_train::metrics::Metric;
use colrow_train::objective::{Causal, Objective, of_model};
use colrow_train::plan::{Shape, plan};
use colrow_train::recipe;
use colrow_train::step::{Engine, Hyperparameters};

const WORDS: usize = 5;

/// The last token alone decides: its row of a table has the logits of the next.
#[derive(Clone, Debug, PartialEq)]
struct Bigrams;

#[derive(Debug)]
struct Table {
    rows: ParamId,
    head: ParamId,
}

impl Architecture for Bigrams {
    fn net(&self, _: usize, r: &mut Registry) -> Box<dyn Net> {
        let size = [WORDS, WORDS];
        let rows = r.add("rows.weight", &size, &["vocab_size", "vocab_size"], Init::Normal(1.0));
        let head = r.add("head.weight", &size, &["vocab_size", "vocab_size"], Init::Normal(1.0));
        Box::new(Table { rows, head })
    }

    fn hidden_size(&self) -> usize {
        WORDS
    }

    fn layers(&self) -> usize {
        1
    }

    fn vocab_size(&self) -> usize {
        WORDS
    }

    fn set_dropout(&mut self, _: f64) {}
}

impl Net for Table {
    fn sites(&self) -> Vec<Site> {
        vec![Site::new("rows", RowsOf::Tokens, SiteKind::Norm)]
    }

    fn linears_mut(&mut self) -> Vec<&mut Dense> {
        Vec::new()
    }

    fn language(&self) -> Option<&dyn Language> {
        Some(self)
    }
}

impl Language for Table {
    fn head(&self) -> Head {
        Head::new(self.head, 1.0)
    }

    fn continuation(&self, tape: &mut Tape<'_>, tokens: &Tokens) -> Option<Var> {
        let ids = tape.device().tensor(Class::Workspace, &[tokens.ids.len()], &tokens.ids);
        Some(tape.embedding("rows", &[(&ids, self.rows)]))
    }

    fn decoder<'n>(&'n self, _: &mut Tape<'_>, _: &Tokens) -> Box<dyn Decoder + 'n> {
        Box::new(Nothing)
    }
}

/// Nobody goes on with its texts here.
struct Nothing;

impl Decoder for Nothing {
    fn cached(&self) -> CacheSize {
        CacheSize { layers: 0, columns: 0, head: 1 }
    }

    fn first(&self) -> Vec<u32> {
        Vec::new()
    }

    fn step(&self, tape: &mut Tape<'_>, _: &[u32], _: &mut colrow_models::decode::Cache) -> Var {
        let nothing = tape.device().zeros(Class::Workspace, DType::F32, &[0, WORDS]);
        tape.constant(nothing)
    }
}

static BIGRAMS: Family = Family {
    model_type: "bigrams",
    name: "Bigrams",
    head: HeadKind::Causal,
    saved_class: "Bigrams",
    tokenizer_class: "PreTrainedTokenizerFast",
    tokenizer_files: &[],
    architecture: |_, _| Box::new(Bigrams),
    keys: Keys { prefix: "", body: &[], head: &[], ignored: &[], aliases: &[], siblings: &[] },
    adapter_targets: &[],
    modules_to_save: &[],
    peft_task: "CAUSAL_LM",
};

fn settings() -> Hyperparameters {
    Hyperparameters::from(&recipe::Optim::default())
}

/// Token 0 goes on to token 1 at a loss of 2, token 2 to itself at a loss of 1 and to no other as surely.
fn bigrams() -> Engine {
    let config = Config::from_json_of(&[&BIGRAMS], br#"{"model_type": "bigrams"}"#, Path::new("config.json")).unwrap();
    let mut model = Model::new(config, &Device::cpu(), DType::F64);
    let mut rows = vec![0.0; WORDS * WORDS];
    let mut row = |token: usize, next: usize, loss: f64| {
        let p = (-loss).exp();
        let others = ((1.0 - p) / (WORDS - 1) as f64).ln();
        (0..WORDS).for_each(|i| rows[token * WORDS + i] = if i == next { -loss } else { others });
    };
    row(0, 1, 2.0);
    row(2, 2, 1.0);
    let identity = (0..WORDS * WORDS).map(|i| if i % (WORDS + 1) == 0 { 1.0 } else { 0.0 });
    let Registry { params, entries, .. } = &mut model.registry;
    params[entries[0].param].value.dense_mut().write_f64(rows);
    params[entries[1].param].value.dense_mut().write_f64(identity);
    Engine::new(model, settings())
}

/// Sequences with a weight for each token.
fn set(sequences: &[(&[u32], &[f32])]) -> TokenisedSet {
    let mut set = TokenisedSet { bounds: vec![0], weight: Some(vec![]), ..TokenisedSet::default() };
    for (ids, weights) in sequences {
        set.ids.extend(*ids);
        set.weight.as_mut().unwrap().extend(*weights);
        set.bounds.push(set.ids.len());
    }
    (set.types, set.special) = (vec![0; set.ids.len()], vec![false; set.ids.len()]);
    set
}

/// One label at a loss of 2, and three whose losses sum to 3: the mean over the four is 1.25, whatever stands in which batch.
#[test]
fn the_loss_is_a_mean_over_the_labels_of_a_step() {
    let set = set(&[(&[0, 1, 3, 4], &[0.0, 1.0, 0.0, 0.0]), (&[2, 2, 2, 2], &[0.0, 1.0, 1.0, 1.0])]);
    for groups in [&[&[0_u32, 1][..]][..], &[&[1, 0]], &[&[0], &[1]], &[&[1], &[0]]] {
        let micros: Vec<Batch> = groups.iter().map(|group| Batch::of(&set, group)).collect();
        let loss = bigrams().step(&micros, 0.0, 1, false).unwrap().loss;
        assert!((loss - 1.25).abs() < 1e-12, "{groups:?}: {loss}");
    }
    for by in [BatchBy::Examples(1), BatchBy::Examples(2), BatchBy::Tokens(7)] {
        let mut seen = 0;
        let evaluation = evaluate(&bigrams(), &set, by, |n| {
            seen = n;
            Ok(())
        });
        let evaluation = evaluation.unwrap();
        let value = |metric| evaluation.get(metric).unwrap();
        assert!((value(Metric::Loss) - 1.25).abs() < 1e-12);
        assert!((value(Metric::Perplexity) - 1.25_f64.exp()).abs() < 1e-12);
        // of token 0 another is more likely
        assert_eq!(value(Metric::TokenAccuracy), 0.75);
        assert_eq!((seen, evaluation.examples), (2, 2));
        let json = evaluation.to_json("");
        assert_eq!((json["labels"].as_u64(), json["tokens"].as_u64()), (Some(4), Some(8)));
    }
    let nothing = Batch::of(&self::set(&[(&[0, 1], &[0.0, 0.0])]), &[0]);
    assert!(
        bigrams()
            .step(&[nothing], 0.0, 1, false)
            .unwrap_err()
            .to_string()
            .contains("nothing of this step's batch counts")
    );
}

fn llama() -> Config {
    let json = serde_json::json!({
        "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 20,
        "vocab_size": 30, "max_position_embeddings": 64,
    });
    Config::from_json(json.to_string().as_bytes(), Path::new("config.json")).unwrap()
}

/// Documents that stand end to end do not see each other: their loss is that of each alone, by its labels.
#[test]
fn sequences_of_a_batch_are_as_if_alone() {
    let mut model = Model::new(llama(), &Device::cpu(), DType::F64);
    model.init(3);
    let causal = Causal::new(None);
    let sequence = |n: u32| -> Vec<u32> { (0..n).map(|i| (7 * i + n) % 30).collect() };
    let weights = |n: u32| -> Vec<f32> { (0..n).map(|i| if i > 0 && i % 2 == 0 { 1.0 } else { 0.0 }).collect() };
    let all: Vec<_> = [9, 3, 17].map(|n| (sequence(n), weights(n))).to_vec();
    let parts: Vec<(&[u32], &[f32])> = all.iter().map(|(ids, weights)| (&ids[..], &weights[..])).collect();
    let set = set(&parts);
    let mean = |indices: &[u32]| causal.mean_loss(&model, &Batch::of(&set, indices)).unwrap();
    let alone: Vec<(f64, f64)> = (0..3).map(|i| mean(&[i])).collect();
    let together = mean(&[0, 1, 2]);
    let sum = alone.iter().fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(
        (sum.0 - together.0).abs() < 1e-10 && sum.1 == together.1 && sum.1 == 4.0 + 1.0 + 8.0,
        "{sum:?} {together:?}"
    );
}

/// What a step and an evaluation need is what is planned, to the byte, where all tokens count; and never more.
#[test]
fn the_plan_is_the_meters_peak() {
    let lengths = Lengths { sources: vec![20, 3, 7], targets: None };
    let (config, threads) = (llama(), 2);
    let objective = of_model(&config, 0);
    let policy = Arc::new(Policy::exact());
    let planned = plan(&Shape {
        processes: 1,
        rounds: 1,
        config: &config,
        objective: objective.clone(),
        choose_trained: &|_| Ok(()),
        optim: settings(),
        policy: policy.clone(),
        auto: &[],
        micros: &[lengths.clone(), lengths.clone()],
        evaluated: std::slice::from_ref(&lengths),
        cached_tokens: 0,
        threads,
        resident: Resident::default(),
        host: 0,
        mapped: 0,
    })
    .unwrap();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut model = Model::new(config.clone(), &Device::cpu(), DType::F32);
        model.init(3);
        let mut engine = Engine::new(model, settings());
        engine.gradient.policy = policy.clone();
        engine.gradient.dropout = true;
        let full = objective.batch_of_lengths(&lengths);
        let stats = engine.step(&[full.clone(), full.clone()], 1e-3, 1, false).unwrap();
        assert_eq!((stats.kept_bytes, stats.peak.total()), (planned.kept_bytes, planned.peak_bytes));
        let device = engine.model.registry.params.device().clone();
        device.meter().reset_peak();
        engine.objective.evaluate(&engine.model, &full).unwrap();
        assert_eq!(device.meter().peak().total(), planned.evaluation_peak_bytes);
        let mut few = full;
        few.tokens.weight.as_mut().unwrap()[..15].fill(0.0);
        let stats = engine.step(&[few.clone(), few], 1e-3, 2, false).unwrap();
        assert!(stats.kept_bytes <= planned.kept_bytes && stats.peak.total() <= planned.peak_bytes);
    });
}
