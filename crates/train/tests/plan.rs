//! The plan against all that a run can do: no batch that the sampler can produce needs more, evaluations are covered, and what more
//! needs more.

mod common;

use std::sync::Arc;

use colrow_autograd::{CachePlace, Keep, NormSource, Policy, Sampling};
use colrow_models::config::Config;
use colrow_models::family::HeadKind;
use colrow_models::model::Model;
use colrow_models::net::SiteKind;
use colrow_tensor::{DType, Device, Estimator};
use colrow_train::data::{BatchBy, Lengths, Sampler, outermost};
use colrow_train::machine::Resident;
use colrow_train::objective::of_model;
use colrow_train::plan::{Plan, Shape, plan};
use colrow_train::step::Engine;
use colrow_train::step::Hyperparameters;
use colrow_train::{keeping, recipe, trained};
use proptest::prelude::*;

/// Threads that are planned for, so that attention's scratch counts.
const THREADS: usize = 3;
const LONGEST_ANSWER: usize = 9;

fn config(json: &serde_json::Value) -> Config {
    Config::from_json(json.to_string().as_bytes(), "config.json".as_ref()).unwrap()
}

/// Narrow, so that what depends on sequences and on the longest of them weighs as much as it can beside what depends on tokens.
fn bert() -> Config {
    config(&serde_json::json!({
        "model_type": "bert", "hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 6,
        "vocab_size": 30, "max_position_embeddings": 80, "num_labels": 3,
    }))
}

fn t5() -> Config {
    config(&serde_json::json!({
        "model_type": "t5", "d_model": 4, "d_kv": 2, "num_heads": 2, "d_ff": 6, "num_layers": 2, "vocab_size": 30,
        "relative_attention_num_buckets": 8, "eos_token_id": 1, "decoder_start_token_id": 0,
    }))
}

fn policies(config: &Config) -> [Arc<Policy>; 4] {
    let paper = |norms| {
        let keep = Keep::Rows(Sampling { estimator: Estimator::Pps, ratio: 0.3, norms, uniform: 0.1 });
        common::paper(config, &|_| Ok(()), keep)
    };
    let rebuild = Policy::everywhere(Keep::Nothing);
    [Policy::exact(), paper(NormSource::Cached), paper(NormSource::Current), rebuild].map(Arc::new)
}

fn settings() -> Hyperparameters {
    Hyperparameters::from(&recipe::Optim::default())
}

fn plan_of(config: &Config, policy: &Arc<Policy>, micros: &[Lengths], evaluated: &[Lengths]) -> Plan {
    plan(&Shape {
        processes: 1,
        rounds: 1,
        config,
        objective: of_model(config, LONGEST_ANSWER),
        choose_trained: &|_| Ok(()),
        optim: settings(),
        policy: policy.clone(),
        auto: &[],
        micros,
        evaluated,
        cached_tokens: 1000,
        threads: THREADS,
        resident: Resident::default(),
        host: 0,
        mapped: 0,
    })
    .unwrap()
}

/// Sources and targets of these lengths, the latter if the model answers in text.
fn lengths(config: &Config, sources: Vec<u32>, targets: Vec<u32>) -> Lengths {
    Lengths { sources, targets: (config.family().head == HeadKind::Language).then_some(targets) }
}

/// The largest step's lengths as a job plans them: the longest targets, whose ever they are.
fn largest(config: &Config, sampler: &Sampler, targets: &[u32]) -> Lengths {
    let sources = sampler.largest_batch();
    let mut targets = targets.to_vec();
    targets.sort_unstable_by(|a, b| b.cmp(a));
    targets.truncate(sources.len());
    lengths(config, sources, targets)
}

/// Examples (tokens of source and target), how batches are cut, and a seed.
fn data() -> impl Strategy<Value = (Vec<(u32, u32)>, BatchBy, u64)> {
    let examples = proptest::collection::vec((1..70_u32, 1..6_u32), 1..30);
    (examples, any::<bool>(), 1..12_usize, any::<u64>()).prop_map(|(examples, by_tokens, size, seed)| {
        let by = if by_tokens { BatchBy::Tokens(69 + 10 * size) } else { BatchBy::Examples(size) };
        (examples, by, seed)
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: proptest::test_runner::RngSeed::Fixed(1), failure_persistence: None, cases: 40, ..Default::default()
    })]

    #[test]
    fn no_batch_of_any_epoch_exceeds_the_plan((examples, by, seed) in data()) {
        let (sources, targets): (Vec<u32>, Vec<u32>) = examples.iter().copied().unzip();
        let sampler = Sampler::new(sources.clone(), by, Some(seed)).unwrap();
        let longest = sources.iter().copied().max().unwrap();
        for (config, policy) in [bert(), t5()].iter().flat_map(|c| policies(c).map(|p| (c, p))) {
            let bound = largest(config, &sampler, &targets);
            let planned = plan_of(config, &policy, &[bound.clone(), bound.clone()], &[]);
            let of = |batch: &Vec<u32>| {
                let pick = |all: &[u32]| batch.iter().map(|&i| all[i as usize]).collect();
                lengths(config, pick(&sources), pick(&targets))
            };
            let batches: Vec<Lengths> = (0..20).flat_map(|epoch| sampler.epoch(epoch)).map(|batch| of(&batch)).collect();
            for batch in outermost(batches.iter().cloned()) {
                for micros in [vec![batch.clone()], vec![batch.clone(), batch.clone()], vec![bound.clone(), batch]] {
                    let step = plan_of(config, &policy, &micros, &[]);
                    prop_assert!(step.peak_bytes <= planned.peak_bytes, "{micros:?}: {} above {}", step.peak_bytes, planned.peak_bytes);
                    prop_assert!(step.kept_bytes <= planned.kept_bytes);
                    prop_assert!(step.tokens <= planned.tokens);
                }
            }
            // batches of classifiers by sequences are planned to the byte; those by tokens for less than a sequence more than can be drawn
            if config.family().head == HeadKind::Classifier {
                let mut drawn = sources.clone();
                drawn.sort_unstable_by_key(|&l| if matches!(by, BatchBy::Tokens(_)) { l } else { u32::MAX - l });
                drawn.truncate(bound.sources.len());
                if matches!(by, BatchBy::Tokens(_)) {
                    drawn.push(longest);
                }
                let drawn = lengths(config, drawn, vec![]);
                let drawn = plan_of(config, &policy, &[drawn.clone(), drawn], &[]);
                prop_assert!(planned.peak_bytes <= drawn.peak_bytes);
                prop_assert!(matches!(by, BatchBy::Tokens(_)) || planned.peak_bytes == drawn.peak_bytes);
            }
        }
    }

    /// What bisection over batch sizes relies on.
    #[test]
    fn a_larger_batch_never_needs_less((examples, by, seed) in data()) {
        let (sources, targets): (Vec<u32>, Vec<u32>) = examples.iter().copied().unzip();
        for (config, policy) in [bert(), t5()].iter().flat_map(|c| policies(c).map(|p| (c, p))) {
            let mut before = 0;
            for more in 0..8 {
                let by = match by {
                    BatchBy::Examples(size) => BatchBy::Examples(size + more),
                    BatchBy::Tokens(budget) => BatchBy::Tokens(budget + 3 * more),
                };
                let sampler = Sampler::new(sources.clone(), by, Some(seed)).unwrap();
                let plan = plan_of(config, &policy, &[largest(config, &sampler, &targets)], &[]);
                prop_assert!(plan.peak_bytes >= before && plan.process_bytes > plan.peak_bytes, "{by:?}");
                before = plan.peak_bytes;
            }
        }
    }
}

/// The meter's peak in an evaluation is the planned one to the byte, wherever answers end; the largest of several batches is found among the
/// outermost.
#[test]
fn plan_equals_meter_in_evaluations() {
    let batches = [(vec![50, 3, 7], vec![1, 2, 1]), (vec![20; 4], vec![5; 4]), (vec![70], vec![1]), (vec![3], vec![1])];
    for (config, policy) in [bert(), t5()].iter().flat_map(|c| policies(c).map(|p| (c, p))) {
        let evaluated: Vec<Lengths> = batches.iter().map(|(s, t)| lengths(config, s.clone(), t.clone())).collect();
        assert_eq!(outermost(evaluated.clone()), evaluated[..3]);
        let step = [lengths(config, vec![1], vec![1])];
        let plan = plan_of(config, &policy, &step, &outermost(evaluated.clone()));
        assert_eq!(plan.peak_bytes, plan.evaluation_peak_bytes, "the step is small");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(THREADS).build().unwrap();
        pool.install(|| {
            let device = Device::cpu();
            let mut model = Model::new(config.clone(), &device, DType::F32);
            model.init(3);
            let mut engine = Engine::new(model, settings()).keeping(policy.clone(), 1000, CachePlace::Memory).unwrap();
            let objective = of_model(config, LONGEST_ANSWER);
            engine.objective = objective.clone();
            engine.gradient.dropout = true;
            engine.step(&step.each_ref().map(|lengths| objective.batch_of_lengths(lengths)), 1e-3, 1, false).unwrap();
            device.meter().reset_peak();
            for lengths in &evaluated {
                objective.evaluate(&engine.model, &objective.batch_of_lengths(lengths)).unwrap();
            }
            assert_eq!(device.meter().peak(), plan.peak_bytes_by_class);
        });
    }
}

/// Whatever is kept and however weights are updated, the time of a plan grows with the layers, not with a power of their number: models of a
/// thousand layers are planned in seconds, and the bound is generous.
#[test]
fn a_thousand_layers_are_planned_in_seconds() {
    let mut json = serde_json::json!({
        "model_type": "bert", "hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 6, "vocab_size": 30,
        "max_position_embeddings": 80, "num_labels": 3,
    });
    json["num_hidden_layers"] = 1024.into();
    let config = config(&json);
    let clock = std::time::Instant::now();
    for set in [
        &["keep.policy=exact", "train.freeze=['bert.embeddings.*', '*.layer.7.*']"][..],
        &["keep.policy=paper", "keep.sites.'*.layer.1*'.ratio=0.5", "keep.sites.'*'.norms='running'"],
        &["keep.policy=lean", "keep.ratio=auto", "train.method=lora"],
        &["keep.policy=recompute", "optim.states=8bit"],
        &["keep.policy=leanest", "optim.update=in-backward", "optim.clip=0"],
    ] {
        let sets: Vec<String> = set.iter().map(|&s| s.to_owned()).collect();
        let recipe = recipe::Recipe::parse("model.path = 'm'", "test", &sets).unwrap();
        let mut model = Model::new(config.clone(), &Device::meta(1), DType::F32);
        trained::choose_trained(&mut model, &recipe).unwrap();
        let sites = model.sites();
        let auto: Vec<_> = match recipe.keep.chooses_ratios() {
            true => sites.iter().filter(|s| s.kind == SiteKind::Linear).map(|s| (s.name.clone(), s.rows)).collect(),
            false => Vec::new(),
        };
        let planned = plan(&Shape {
            processes: 1,
            rounds: 1,
            config: &config,
            objective: of_model(&config, LONGEST_ANSWER),
            choose_trained: &|model| trained::choose_trained(model, &recipe),
            optim: Hyperparameters::from(&recipe.optim),
            policy: Arc::new(keeping::policy(&recipe.keep, &sites).unwrap()),
            auto: &auto,
            micros: &[lengths(&config, vec![20; 4], vec![])],
            evaluated: &[],
            cached_tokens: 1000,
            threads: THREADS,
            resident: Resident::default(),
            host: 0,
            mapped: 0,
        })
        .unwrap();
        assert!(planned.sites.len() > 1000, "{set:?}: {}", planned.sites.len());
    }
    assert!(clock.elapsed().as_secs() < 60, "{:?}", clock.elapsed());
}
