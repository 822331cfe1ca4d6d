//! The step as a whole: plan, meter and ledger agree to the byte, threads do not matter, numbers that are not finite are located.

mod common;

use std::rc::Rc;
use std::sync::Arc;

use colrow_autograd::{Bits, CachePlace, Keep, NormMemory, NormSource, Phase, Policy, Running, Sampling};
use colrow_models::config::Config;
use colrow_models::family::HeadKind;
use colrow_models::lora::{self, LoraConfig};
use colrow_models::model::Model;
use colrow_models::tokens::Tokens;
use colrow_tensor::rng::Key;
use colrow_tensor::{BaseWeights, DType, Device, Estimator, Result, TrainedWeights};
use colrow_train::data::{Batch, Labels, Lengths};
use colrow_train::keeping;
use colrow_train::machine::Resident;
use colrow_train::objective::of_model;
use colrow_train::plan::{Shape, plan};
use colrow_train::recipe::{self, PolicyName};
use colrow_train::step::{Engine, Hyperparameters, Moments, States, When};

const SETTINGS: Hyperparameters = Hyperparameters {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.01,
    clip: 1.0,
    states: States::F32,
    update: When::AfterBackward,
};
const SOURCES: [NormSource; 4] = [NormSource::Current, NormSource::Cached, NormSource::Running, NormSource::Uniform];

/// Sizes: hidden, layers, heads, intermediate, labels (1 for regression).
fn config([d, layers, heads, f, labels]: [usize; 5]) -> Config {
    let act = if layers == 1 { "gelu_new" } else { "gelu" };
    let json = serde_json::json!({
        "model_type": "bert", "hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": f, "vocab_size": 61, "max_position_embeddings": 160, "hidden_act": act,
        "num_labels": labels, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    });
    Config::from_json(json.to_string().as_bytes(), "config.json".as_ref()).unwrap()
}

/// Sequences of these lengths with tokens and labels from `seed`; their places in the training set start at `first`.
fn micro(lengths: &[u32], labels: usize, seed: u64, first: u64) -> Batch {
    let (key, mut batch) = (Key::new(seed), Batch::of_lengths(&sources(lengths)));
    let draw = |stream: &str, i: usize, below: usize| (key.named(stream).uniform(i as u64) * below as f64) as u32;
    batch.tokens.ids.iter_mut().enumerate().for_each(|(i, id)| *id = draw("id", i, 61));
    batch.tokens.types.iter_mut().enumerate().for_each(|(i, kind)| *kind = draw("type", i, 2));
    batch.tokens.bounds[..lengths.len()].iter().for_each(|&first| batch.special[first as usize] = true);
    let b = 0..lengths.len();
    batch.labels = Some(match labels {
        1 => Labels::Value(b.map(|i| draw("label", i, 5) as f32).collect()),
        _ => Labels::Class(b.map(|i| draw("label", i, labels)).collect()),
    });
    batch.places = Some((first..).take(batch.tokens.ids.len()).collect());
    batch
}

fn sources(lengths: &[u32]) -> Lengths {
    Lengths { sources: lengths.to_vec(), targets: None }
}

/// Leaves the keys that are `frozen` as they are.
fn freezing(frozen: &dyn Fn(&str) -> bool) -> impl Fn(&mut Model) -> Result<()> {
    move |model| model.registry.freeze(frozen)
}

fn engine(
    config: &Config,
    policy: &Arc<Policy>,
    choose_trained: &dyn Fn(&mut Model) -> Result<()>,
    optim: Hyperparameters,
    cached_tokens: usize,
) -> Engine {
    let device = Device::cpu();
    let mut model = Model::new(config.clone(), &device, DType::F32);
    model.init(3);
    choose_trained(&mut model).unwrap();
    let mut engine = Engine::new(model, optim).keeping(policy.clone(), cached_tokens, CachePlace::Memory).unwrap();
    (engine.gradient.key, engine.gradient.dropout) = (Key::new(5), true);
    engine
}

fn rows(estimator: Estimator, norms: NormSource, ratio: f32) -> Keep {
    Keep::Rows(Sampling { estimator, ratio, norms, uniform: 0.1 })
}

fn policies(config: &Config, choose_trained: &dyn Fn(&mut Model) -> Result<()>) -> Vec<(String, Policy)> {
    let paper = |keep| common::paper(config, choose_trained, keep);
    let mut all = vec![("exact".to_owned(), Policy::exact())];
    all.push(("rebuild".into(), Policy::everywhere(Keep::Nothing)));
    for bits in [Bits::Int8, Bits::Int4, Bits::Bf16] {
        all.push((format!("{bits:?}"), Policy::everywhere(Keep::Quantised(bits))));
    }
    for estimator in [Estimator::Crs, Estimator::Wta, Estimator::Pps, Estimator::TopK] {
        all.extend(SOURCES.map(|s| (format!("paper {estimator:?} {s:?}"), paper(rows(estimator, s, 0.3)))));
    }
    all.extend(SOURCES.map(|s| (format!("everywhere {s:?}"), Policy::everywhere(rows(Estimator::Pps, s, 0.1)))));
    // with `all but one product` frozen, wide layers and short sequences, the peak is at the draw, norms and all
    all.extend(SOURCES.map(|s| (format!("paper, most rows, {s:?}"), paper(rows(Estimator::Pps, s, 0.9)))));
    let mixed = [
        ("encoder.layer.0.*.qkv", rows(Estimator::Wta, NormSource::Current, 0.5)),
        ("encoder.layer.*.intermediate.dense", Keep::Nothing),
        ("encoder.layer.0.output.dense", rows(Estimator::Crs, NormSource::Cached, 0.3)),
        ("encoder.layer.1.output.dense", rows(Estimator::Pps, NormSource::Uniform, 1.0)),
        ("pooler.*", rows(Estimator::Pps, NormSource::Running, 0.5)),
        ("classifier", rows(Estimator::Pps, NormSource::Current, 0.5)),
    ];
    all.push(("mixed".into(), common::by_patterns(config, choose_trained, &mixed)));
    all
}

/// The recipe's presets, of which the policies above know nothing.
fn presets(config: &Config, choose_trained: &dyn Fn(&mut Model) -> Result<()>) -> Vec<(String, Policy)> {
    let mut model = Model::new(config.clone(), &Device::meta(1), DType::F32);
    choose_trained(&mut model).unwrap();
    let sites = model.sites();
    let preset = |policy: PolicyName, norms: Option<NormSource>| {
        let keep = recipe::Keeping { policy, norms, ..recipe::Keeping::default() };
        (format!("{policy} {norms:?}"), keeping::policy(&keep, &sites).unwrap())
    };
    let cached = Some(NormSource::Cached);
    vec![
        preset(PolicyName::Lean, None),
        preset(PolicyName::Lean, cached),
        preset(PolicyName::Leanest, None),
        preset(PolicyName::Recompute, None),
        preset(PolicyName::Recompute, cached),
    ]
}

type Frozen = (&'static str, fn(&str) -> bool);

const FROZEN: [Frozen; 7] = [
    ("nothing", |_| false),
    ("embeddings and first layer", |key| key.contains("embeddings") || key.contains("layer.0.")),
    ("all but the head", |key| !key.starts_with("classifier")),
    ("all but one norm", |key| !key.ends_with("layer.0.attention.output.LayerNorm.bias")),
    ("all but one product", |key| key != "bert.encoder.layer.0.output.dense.weight"),
    ("matrices", |key| key.ends_with("weight") && !key.contains("LayerNorm")),
    ("all but word embeddings", |key| !key.contains("word_embeddings")),
];

/// Sequence lengths by micro-batch.
fn steps() -> [Vec<Vec<u32>>; 4] {
    [vec![vec![7, 3, 12]], vec![vec![5, 2], vec![9, 1, 70], vec![4]], vec![vec![8; 10]], vec![vec![1]]]
}

#[test]
fn plan_equals_meter() {
    for sizes in [[32, 2, 4, 64, 2], [36, 1, 3, 150, 3], [20, 3, 5, 17, 1]] {
        let config = config(sizes);
        for ((name, policy), (frozen_name, frozen), micros) in
            [policies(&config, &|_| Ok(())), presets(&config, &|_| Ok(()))]
                .concat()
                .into_iter()
                .flat_map(|p| FROZEN.map(|f| (p.clone(), f)))
                .flat_map(|(p, f)| steps().map(|s| (p.clone(), f, s)))
        {
            let what = format!("{sizes:?}, {name}, frozen: {frozen_name}, {micros:?}");
            agree(&what, &config, policy, &freezing(&frozen), &micros);
        }
    }
}

#[test]
fn plan_equals_meter_with_adapters() {
    let config = config([36, 2, 3, 150, 3]);
    for (targets, dropout, learn_a) in
        [(&["query", "value"][..], 0.1, true), (&["*.dense", "key"], 0.0, true), (&["key"], 0.1, false)]
    {
        let settings = LoraConfig {
            lora_rank: 3,
            alpha: 6.0,
            dropout,
            rank_stabilised: false,
            targets: targets.iter().map(|&t| t.to_owned()).collect(),
            modules_to_save: vec!["classifier".to_owned()],
            ..LoraConfig::default()
        };
        let choose = |model: &mut Model| {
            lora::adapt(model, &settings, 1)?;
            let learned = |key: &str| {
                lora::is_adapter_key(key) && (learn_a || !lora::is_a_key(key)) || key.starts_with("classifier")
            };
            model.registry.freeze(|key| !learned(key))
        };
        let policies = [policies(&config, &choose), presets(&config, &choose)].concat();
        for ((name, policy), micros) in policies.into_iter().flat_map(|p| steps().map(|s| (p.clone(), s))) {
            agree(&format!("{targets:?}, {name}, {micros:?}"), &config, policy, &choose, &micros);
        }
    }
}

/// A small T5: v1.0 or v1.1.
fn t5(gated: bool) -> Config {
    let json = serde_json::json!({
        "model_type": "t5", "d_model": 20, "d_kv": 6, "num_heads": 3, "d_ff": 44, "num_layers": 2, "vocab_size": 61,
        "feed_forward_proj": if gated { "gated-gelu" } else { "relu" }, "tie_word_embeddings": !gated,
    });
    Config::from_json(json.to_string().as_bytes(), "config.json".as_ref()).unwrap()
}

#[test]
fn plan_equals_meter_for_t5() {
    let frozen: [Frozen; 4] = [
        ("nothing", |_| false),
        ("encoder", |key| key.starts_with("encoder")),
        ("all but the biases by position", |key| !key.ends_with("relative_attention_bias.weight")),
        ("matrices", |key| !key.ends_with("layer_norm.weight")),
    ];
    let lora = LoraConfig {
        lora_rank: 2,
        alpha: 4.0,
        dropout: 0.1,
        rank_stabilised: false,
        targets: ["q", "v", "wo"].map(str::to_owned).to_vec(),
        modules_to_save: vec![],
        ..LoraConfig::default()
    };
    let adapted = |model: &mut Model| {
        lora::adapt(model, &lora, 1)?;
        model.registry.freeze(|key| !lora::is_adapter_key(key))
    };
    for (gated, (name, policy), micros) in [false, true]
        .into_iter()
        .flat_map(|gated| {
            [policies(&t5(gated), &adapted), presets(&t5(gated), &adapted)]
                .concat()
                .into_iter()
                .map(move |p| (gated, p))
        })
        .flat_map(|(g, p)| steps().map(|s| (g, p.clone(), s)))
    {
        for (frozen_name, frozen) in frozen {
            let what = format!("t5, gated {gated}, {name}, frozen: {frozen_name}, {micros:?}");
            agree(&what, &t5(gated), policy.clone(), &freezing(&frozen), &micros);
        }
        agree(&format!("t5, gated {gated}, {name}, lora, {micros:?}"), &t5(gated), policy, &adapted, &micros);
    }
}

fn targets(config: &Config, lengths: &[u32]) -> Option<Vec<u32>> {
    (config.family().head == HeadKind::Language).then(|| lengths.iter().map(|l| 1 + l % 4).collect())
}

/// Step number `step`'s batches of these lengths.
fn batches(config: &Config, micros: &[Vec<u32>], step: u64) -> Vec<Batch> {
    let one = |(i, lengths): (usize, &Vec<u32>)| {
        let mut micro = micro(lengths, config.num_labels(), step + i as u64, 100 * i as u64);
        if let Some(targets) = targets(config, lengths) {
            let text = |&n: &u32| (0..n).map(|t| (t * 7 + step as u32) % 61).collect::<Vec<u32>>();
            micro.targets = Some(Tokens::of(targets.iter().map(text)));
            micro.target_places = Some((500 + 100 * i as u64..).take(targets.iter().sum::<u32>() as usize).collect());
        }
        micro
    };
    micros.iter().enumerate().map(one).collect()
}

/// Plans a step and runs three like it.
fn agree(
    what: &str,
    config: &Config,
    policy: Policy,
    choose_trained: &dyn Fn(&mut Model) -> Result<()>,
    micros: &[Vec<u32>],
) {
    agree_with(SETTINGS, what, config, policy, choose_trained, micros);
}

fn agree_with(
    optim: Hyperparameters,
    what: &str,
    config: &Config,
    policy: Policy,
    choose_trained: &dyn Fn(&mut Model) -> Result<()>,
    micros: &[Vec<u32>],
) {
    let with_targets = |lengths: &Vec<u32>| Lengths { targets: targets(config, lengths), ..sources(lengths) };
    let policy = Arc::new(policy);
    let threads = rayon::current_num_threads();
    let shape = Shape {
        processes: 1,
        rounds: 1,
        config,
        objective: of_model(config, 0),
        choose_trained,
        optim,
        policy: policy.clone(),
        auto: &[],
        micros: &micros.iter().map(with_targets).collect::<Vec<_>>(),
        evaluated: &[],
        resident: Resident::default(),
        host: 0,
        mapped: 0,
        cached_tokens: 1000,
        threads,
    };
    let plan = plan(&shape).unwrap();
    assert_eq!(plan.ledger.total(), plan.kept_bytes, "{what}: the plan's ledger");
    assert_eq!(plan.sites.iter().map(|s| s.kept_bytes).sum::<usize>(), plan.kept_bytes, "{what}: its sites");
    let mut engine = engine(config, &policy, choose_trained, optim, 1000);
    for step in 1..=3 {
        let micros = batches(config, micros, step);
        let stats = engine.step(&micros, 1e-3, step, false).unwrap();
        let what = format!("{what}, step {step}");
        assert_eq!(stats.ledger, plan.ledger, "{what}");
        assert_eq!(stats.kept_bytes, plan.kept_bytes, "{what}");
        assert_eq!(stats.peak, plan.peak_bytes_by_class, "{what}");
        assert_eq!((stats.peak.total(), stats.tokens), (plan.peak_bytes, plan.tokens), "{what}");
    }
    let live = engine.model.registry.params.device().meter().live();
    assert_eq!((live.kept, live.gradients, live.workspace), (0, 0, 0), "{what}: after a step");
}

const IN_BACKWARD: Hyperparameters = Hyperparameters { clip: 0.0, update: When::InBackward, ..SETTINGS };
const EIGHT_BIT: Hyperparameters = Hyperparameters { states: States::EightBit, ..SETTINGS };

/// With weights large enough for moments in eight bits; T5's embedding is tied, and its biases by position serve every layer.
fn large() -> [Config; 3] {
    let t5 = |gated: bool| {
        let json = serde_json::json!({
            "model_type": "t5", "d_model": 68, "d_kv": 8, "num_heads": 2, "d_ff": 72, "num_layers": 2, "vocab_size": 61,
            "feed_forward_proj": if gated { "gated-gelu" } else { "relu" }, "tie_word_embeddings": !gated,
        });
        Config::from_json(json.to_string().as_bytes(), "config.json".as_ref()).unwrap()
    };
    [config([68, 2, 4, 72, 3]), t5(false), t5(true)]
}

/// What is trained, with its name.
type Trained = (&'static str, Rc<dyn Fn(&mut Model) -> Result<()>>);

/// With what is frozen in codes.
fn held(base: BaseWeights, choose: impl Fn(&mut Model) -> Result<()>) -> impl Fn(&mut Model) -> Result<()> {
    move |model| {
        choose(model)?;
        assert!(model.registry.hold_frozen(base));
        Ok(())
    }
}

/// All parameters, all but some, adapters; frozen weights as they are and in codes.
fn trained(config: &Config) -> Vec<Trained> {
    let target = if config.family().head == HeadKind::Language { "q" } else { "query" };
    let lora = LoraConfig {
        lora_rank: 2,
        alpha: 4.0,
        dropout: 0.1,
        rank_stabilised: false,
        targets: vec![target.to_owned()],
        modules_to_save: vec![],
        ..LoraConfig::default()
    };
    let adapted = move |model: &mut Model| {
        lora::adapt(model, &lora, 1)?;
        model.registry.freeze(|key| !lora::is_adapter_key(key))
    };
    let freeze = |which: fn(&str) -> bool| move |model: &mut Model| model.registry.freeze(which);
    let all_in_bf16 = |model: &mut Model| {
        assert!(model.registry.hold_trained(TrainedWeights::Bf16));
        Ok(())
    };
    vec![
        ("all", Rc::new(freeze(|_| false))),
        ("all, in bf16", Rc::new(all_in_bf16)),
        ("all but the first layer", Rc::new(freeze(|key| key.contains(".0.")))),
        ("adapters", Rc::new(adapted.clone())),
        ("adapters on int8", Rc::new(held(BaseWeights::Int8, adapted))),
        ("all but the first layer, in bf16", Rc::new(held(BaseWeights::Bf16, freeze(|key| key.contains(".0."))))),
    ]
}

/// A third of the policies, each with all of these.
fn trained_policies(config: &Config) -> Vec<((String, Policy), Trained)> {
    let with = |(name, choose): Trained| {
        let policies = policies(config, &*choose).into_iter().step_by(3);
        policies.map(move |policy| (policy, (name, choose.clone())))
    };
    trained(config).into_iter().flat_map(with).collect()
}

#[test]
fn plan_and_meter_agree_however_weights_are_updated() {
    for config in large() {
        for ((name, policy), (trained, choose)) in trained_policies(&config) {
            for optim in [EIGHT_BIT, IN_BACKWARD, Hyperparameters { states: States::EightBit, ..IN_BACKWARD }] {
                let micros = &[vec![7, 3, 12]];
                agree_with(optim, &format!("{name}, {trained}, {optim:?}"), &config, policy.clone(), &*choose, micros);
            }
        }
    }
}

/// The backward pass draws, keeps and remembers the same, and every gradient is the same when it is final.
#[test]
fn updates_in_the_backward_pass_give_the_same_bits() {
    for (config, states) in large().into_iter().flat_map(|c| [States::F32, States::EightBit].map(|s| (c.clone(), s))) {
        for ((name, policy), (trained, choose)) in trained_policies(&config) {
            let policy = Arc::new(policy);
            let run = |update| {
                let mut engine =
                    engine(&config, &policy, &*choose, Hyperparameters { states, update, ..IN_BACKWARD }, 1000);
                let steps = (1..=3).map(|step| {
                    let stats = engine.step(&batches(&config, &[vec![7, 3, 12]], step), 1e-3, step, false).unwrap();
                    (stats.loss, stats.grad_norm, stats.kept_bytes)
                });
                (steps.collect::<Vec<_>>(), weights(&engine), engine.gradient.norms.map(|n| snapshot(&n)))
            };
            let (after, during) = (run(When::AfterBackward), run(When::InBackward));
            assert!(after == during, "{name}, {trained}, {states:?}: {:?}, {:?}", after.0, during.0);
            assert!(after.0[0].1 > 0.0);
        }
    }
}

/// No two ops' gradients are alive at once, but those of tied weights.
#[test]
fn updates_in_the_backward_pass_need_the_gradients_of_one_op() {
    let largest_op = |config: &Config| {
        let d = 68;
        let layer = 4 * (3 * d * d + 3 * d);
        let embeddings = 4 * (61 + 160 + 2) * d;
        // T5's table is alive from the head on; beside it, an op's
        if config.family().head == HeadKind::Language { 4 * 61 * d + layer } else { layer.max(embeddings) }
    };
    for config in large() {
        let plan_of = |optim| {
            let lengths = Lengths { sources: vec![3], targets: targets(&config, &[3]) };
            plan(&Shape {
                processes: 1,
                rounds: 1,
                config: &config,
                objective: of_model(&config, 0),
                choose_trained: &|_| Ok(()),
                optim,
                policy: Arc::new(Policy::exact()),
                auto: &[],
                micros: &[lengths],
                evaluated: &[],
                resident: Resident::default(),
                host: 0,
                mapped: 0,
                cached_tokens: 0,
                threads: 2,
            })
            .unwrap()
        };
        // of three tokens so little is kept that the peak is where most gradients are
        let (after, during) = (plan_of(SETTINGS), plan_of(IN_BACKWARD));
        let of = |plan: &colrow_train::plan::Plan| plan.peak_bytes_by_class;
        assert!(of(&after).gradients > of(&after).weights * 9 / 10);
        assert!(of(&during).gradients > 0 && of(&during).gradients <= largest_op(&config), "{:?}", of(&during));
        assert!(during.peak_bytes < after.peak_bytes - of(&after).gradients / 2);
        // two codes an element and two scales a block, in large parameters
        let moments = |n: usize| if n < 4096 { 8 * n } else { 2 * n + 8 * n.div_ceil(256) };
        let model = Model::new(config.clone(), &Device::meta(1), DType::F32);
        let bytes = model.registry.params.iter().map(|(_, p)| moments(p.value.len())).sum::<usize>();
        let eight_bit = plan_of(EIGHT_BIT);
        assert_eq!(of(&eight_bit), colrow_tensor::Bytes { optimizer: bytes, ..of(&after) });
    }
}

#[test]
fn settings_that_exclude_each_other_are_refused() {
    let config = config([32, 2, 4, 64, 2]);
    let step = |optim: Hyperparameters, micros: usize| {
        let mut engine = engine(&config, &Arc::new(Policy::exact()), &|_| Ok(()), optim, 0);
        let before = weights(&engine);
        let result = engine.step(&batches(&config, &vec![vec![5, 2]; micros], 1), 1e-3, 1, false);
        assert_eq!(before == weights(&engine), result.is_err());
        result.map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(step(IN_BACKWARD, 1), Ok(()));
    let error = step(Hyperparameters { clip: 0.5, ..IN_BACKWARD }, 1).unwrap_err();
    assert!(
        error.contains("cannot be combined with `optim.clip` = 0.5") && error.contains("set optim.clip = 0"),
        "{error}"
    );
    let error = step(IN_BACKWARD, 3).unwrap_err();
    assert!(error.contains("cannot be combined with `train.accumulate` = 3"), "{error}");
}

/// With all but the head frozen nothing is kept, so what is alive in the forward pass is what an op still reads.
#[test]
fn what_no_op_reads_any_more_is_dropped() {
    let (config, (n, d)) = (config([16, 2, 2, 160, 2]), (90, 16));
    let mut engine =
        engine(&config, &Arc::new(Policy::exact()), &freezing(&|key| !key.starts_with("classifier")), SETTINGS, 0);
    let marks = engine.step(&[micro(&[40, 50], 2, 1, 0)], 1e-3, 1, true).unwrap().timeline;
    let alive = |site: &str| {
        let mark = marks.iter().find(|m| m.phase == Phase::Forward && m.at == site);
        mark.unwrap_or_else(|| panic!("{site} is not on the timeline")).live.workspace
    };
    // the batch's bounds, its first rows, and those as sequences; the step's loss, squares of gradients and factor
    let input = 12 + 8 + 12 + 8 * (engine.model.registry.params.len() + 2);
    // the last layer has q and all behind it for the two pooled rows alone
    for (i, rows) in [(0, n), (1, 2)] {
        let at = |part: &str| alive(&format!("encoder.layer.{i}.{part}"));
        let (narrow, wide) = (rows * d * 4, rows * 160 * 4);
        // besides the op's output, the residual stream; at linears also their input
        match i {
            0 => assert_eq!(at("attention.self.qkv"), input + narrow + 3 * narrow),
            _ => {
                assert_eq!(at("attention.self.kv"), input + 3 * n * d * 4);
                assert_eq!(at("attention.self.query"), input + 2 * narrow + 2 * n * d * 4);
            }
        }
        assert_eq!(at("attention.output.residual"), input + 2 * narrow);
        assert_eq!(at("intermediate.dense"), input + narrow + wide);
        assert_eq!(at("output.dense"), input + narrow + wide + narrow);
        assert_eq!(at("output.residual"), input + 2 * narrow);
    }
    let narrow = n * d * 4;
    assert!(alive("pooler.dense") < input + narrow);
    assert!(alive("classifier") < input + narrow);
}

/// Sampling keeps less, frozen parameters keep and learn nothing, and fewer tokens never need more.
#[test]
fn what_is_not_needed_is_not_kept() {
    let config = config([32, 2, 4, 64, 2]);
    let plan_of = |policy: Policy, frozen: &dyn Fn(&str) -> bool, micros: &[Vec<u32>]| {
        let policy = Arc::new(policy);
        let choose_trained = &freezing(frozen);
        plan(&Shape {
            processes: 1,
            rounds: 1,
            config: &config,
            objective: of_model(&config, 0),
            choose_trained,
            optim: SETTINGS,
            policy,
            auto: &[],
            micros: &micros.iter().map(|lengths| sources(lengths)).collect::<Vec<_>>(),
            evaluated: &[],
            resident: Resident::default(),
            host: 0,
            mapped: 0,
            cached_tokens: 0,
            threads: 2,
        })
        .unwrap()
    };
    let lengths = [vec![40, 31, 7]];
    let exact = plan_of(Policy::exact(), &|_| false, &lengths);
    let first =
        ["output.dense", "intermediate.dense", "attention.output.dense"].map(|part| format!("encoder.layer.0.{part}"));
    let sampled = first.map(|site| (site, rows(Estimator::Pps, NormSource::Cached, 0.3)));
    let sampled = plan_of(Policy::new(sampled), &|_| false, &lengths);
    assert!(sampled.kept_bytes < exact.kept_bytes && sampled.peak_bytes < exact.peak_bytes);
    // in the first layer, the input (n, 32) of the attention output, that of the feed-forward (shared with nothing), and (n, 64) of the second
    // linear are whole in one and 23 rows with index and weight in the other
    let n = 78;
    let saved = |d: usize| n * d * 4 - (23 * d * 4 + 23 * 8);
    assert_eq!(exact.kept_bytes - sampled.kept_bytes, saved(32) + saved(32) + saved(64));
    let head = plan_of(Policy::exact(), &|key| !key.starts_with("classifier"), &lengths);
    let sites: Vec<_> =
        head.sites.iter().filter(|s| s.kept_bytes > 0).map(|s| (s.name.as_str(), s.kept_bytes)).collect();
    // its input (3, 32) and the gradient of three rows of logits
    assert_eq!(sites, [("classifier", 3 * 32 * 4), ("loss", 3 * 2 * 4)]);
    assert_eq!(head.peak_bytes_by_class.optimizer, 2 * 4 * (2 * 32 + 2));
    let divided = plan_of(Policy::exact(), &|_| false, &[vec![40], vec![31], vec![7]]);
    assert!(divided.kept_bytes < exact.kept_bytes && divided.peak_bytes < exact.peak_bytes);
}

#[test]
fn frozen_parameters_stay_and_do_not_change_the_gradient_of_others() {
    let config = config([32, 2, 4, 64, 2]);
    let gradient = |frozen: &dyn Fn(&str) -> bool| {
        // so the first moment is the gradient
        let settings = Hyperparameters { beta1: 0.0, clip: 0.0, ..SETTINGS };
        let mut engine = engine(&config, &Arc::new(Policy::exact()), &freezing(frozen), settings, 0);
        let before = weights(&engine);
        engine.step(&[micro(&[9, 4, 17], 2, 1, 0)], 1e-3, 1, false).unwrap();
        (before, weights(&engine), engine.update.moments)
    };
    let (_, _, all) = gradient(&|_| false);
    for (name, frozen) in FROZEN {
        let (before, after, moments) = gradient(&frozen);
        for (((key, before), (_, after)), (some, all)) in before.iter().zip(&after).zip(moments.iter().zip(&all)) {
            let is_frozen = key.split(" + ").all(frozen);
            assert_eq!(some.is_none(), is_frozen, "frozen: {name}; {key}");
            assert_eq!(before == after, is_frozen, "frozen: {name}; {key}");
            let (Some(some), Some(all)) = (some, all) else { continue };
            let gradient = |moments: &Moments| moments.tensors().next().map(|(_, m)| m.to_f64());
            assert_eq!(gradient(some), gradient(all), "frozen: {name}; gradient of {key}");
        }
    }
}

/// The gradient of four shards is that of each alone, added in their order, to the bit: whoever computes a shard computes the same.
#[test]
fn a_shards_gradient_does_not_depend_on_the_others() {
    let config = config([24, 2, 3, 40, 3]);
    let batches: Vec<_> = (0..4).map(|i| micro(&[5, 1, 9], 3, i, 15 * i)).collect();
    let gradients = |batches: &[Batch]| {
        let mut model = Model::new(config.clone(), &Device::cpu(), DType::F32);
        model.init(3);
        common::gradients(common::engine_of(model, common::GRADIENT), batches).1
    };
    let alone: Vec<_> = batches.iter().map(|batch| gradients(std::slice::from_ref(batch))).collect();
    for (i, (key, together)) in gradients(&batches).into_iter().enumerate() {
        for (j, sum) in together.into_iter().enumerate() {
            // a quarter of each, which is exact
            let [a, b, c, d] = [0, 1, 2, 3].map(|shard: usize| alone[shard][i].1[j] as f32 / 4.0);
            assert_eq!(sum as f32, ((a + b) + c) + d, "{key} {j}");
        }
    }
}

/// A step of any number of shards holds one sum of gradients, beside those of a shard that are not final yet, and is planned by two.
#[test]
fn the_sum_of_shards_is_planned() {
    let config = config([64, 2, 2, 128, 3]);
    let (policy, lengths) = (Arc::new(Policy::exact()), [5, 1, 9]);
    for shards in [1, 2, 3, 8] {
        let planned = plan(&Shape {
            processes: 1,
            rounds: 1,
            config: &config,
            objective: of_model(&config, 0),
            choose_trained: &|_| Ok(()),
            optim: SETTINGS,
            policy: policy.clone(),
            auto: &[],
            micros: &vec![sources(&lengths); shards.min(2)],
            evaluated: &[],
            resident: Resident::default(),
            host: 0,
            mapped: 0,
            cached_tokens: 0,
            threads: rayon::current_num_threads(),
        });
        let mut engine = engine(&config, &policy, &|_| Ok(()), SETTINGS, 0);
        let batches: Vec<_> = (0..shards as u64).map(|i| micro(&lengths, 3, i, 0)).collect();
        let stats = engine.step(&batches, 1e-3, 1, false).unwrap();
        assert_eq!(planned.unwrap().peak_bytes_by_class, stats.peak, "{shards} shards");
        let params = &engine.model.registry.params;
        let sizes = || params.iter().map(|(_, p)| p.value.bytes());
        let (all, largest) = (sizes().sum::<usize>(), sizes().max().unwrap());
        assert!(stats.peak.gradients <= all + if shards > 1 { 2 * largest } else { 0 }, "{shards} shards");
    }
}

/// Loss, norms of gradients and remembered norms of dZ travel together, whatever is kept and however weights are updated. Of several passes each one
/// before the last that has norms to remember reads them by itself.
#[test]
fn the_host_reads_from_the_device_once_a_step() {
    let config = config([24, 2, 3, 40, 3]);
    let in_backward = Hyperparameters { clip: 0.0, update: When::InBackward, ..SETTINGS };
    let eight_bit = Hyperparameters { states: States::EightBit, ..SETTINGS };
    for (name, policy) in policies(&config, &|_| Ok(())) {
        let policy = Arc::new(policy);
        for (settings, passes) in [(SETTINGS, 1), (SETTINGS, 3), (in_backward, 1), (eight_bit, 1)] {
            let mut engine = engine(&config, &policy, &|_| Ok(()), settings, 60);
            let micros: Vec<_> = (0..passes).map(|i| micro(&[5, 1, 9], 3, i, 15 * i)).collect();
            let device = engine.model.registry.params.device().clone();
            for step in 1..=2 {
                let before = device.reads();
                engine.step(&micros, 1e-3, step, true).unwrap();
                let remembers = engine.gradient.norms.as_ref().is_some_and(|_| passes > 1);
                let expected = if remembers { passes } else { 1 };
                assert_eq!(device.reads() - before, expected, "{name}, {passes} passes");
            }
        }
    }
    let t5 = t5(true);
    let mut engine = engine(&t5, &Arc::new(Policy::everywhere(Keep::Nothing)), &|_| Ok(()), SETTINGS, 0);
    let micros = batches(&t5, &[vec![3, 7]], 1);
    let device = engine.model.registry.params.device().clone();
    let before = device.reads();
    engine.step(&micros, 1e-3, 1, false).unwrap();
    assert_eq!(device.reads() - before, 1);
}

fn snapshot(norms: &NormMemory) -> (Running, Vec<u8>) {
    norms.save(|running, codes| (running.clone(), codes.to_vec()))
}

fn weights(engine: &Engine) -> Vec<(String, Vec<f64>)> {
    engine.model.registry.params.iter().map(|(_, p)| (p.name.clone(), common::floats(&p.value))).collect()
}

/// Products here are large enough to be divided among threads.
#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let config = config([96, 2, 4, 388, 3]);
    let lengths = [128, 77, 3, 128, 91, 64, 128, 31];
    for (name, policy) in [
        ("exact", Policy::exact()),
        ("pps, cached", common::paper(&config, &|_| Ok(()), rows(Estimator::Pps, NormSource::Cached, 0.3))),
        ("wta, current", common::paper(&config, &|_| Ok(()), rows(Estimator::Wta, NormSource::Current, 0.3))),
    ] {
        let policy = Arc::new(policy);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut engine = engine(&config, &policy, &|_| Ok(()), SETTINGS, 650);
                let steps = (1..=3).map(|step| engine.step(&[micro(&lengths, 3, 1, 0)], 1e-3, step, false).unwrap());
                let numbers: Vec<_> = steps.map(|s| (s.loss, s.grad_norm)).collect();
                let logits = common::logits(&engine, &micro(&lengths, 3, 1, 0));
                (numbers, logits, weights(&engine), engine.gradient.norms.map(|n| snapshot(&n)))
            })
        };
        let one = run(1);
        assert!(one.0[2].0 < one.0[0].0, "{name}: three steps on one batch learn it: {:?}", one.0);
        for threads in [2, 3, 4] {
            let (numbers, logits, weights, norms) = run(threads);
            assert_eq!(numbers, one.0, "{name}, {threads} threads: loss and gradient norm");
            assert_eq!(logits, one.1, "{name}, {threads} threads: logits");
            assert!(weights == one.2, "{name}, {threads} threads: weights");
            assert!(norms == one.3, "{name}, {threads} threads: remembered norms");
        }
    }
}

#[test]
fn numbers_that_are_not_finite_are_located() {
    let config = config([32, 2, 4, 64, 2]);
    let policy = Arc::new(common::paper(&config, &|_| Ok(()), rows(Estimator::Pps, NormSource::Cached, 0.3)));
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    for (key, bad, site) in [
        ("bert.embeddings.position_embeddings.weight", nan, "embeddings"),
        ("bert.encoder.layer.0.attention.self.value.bias", inf, "encoder.layer.0.attention.self.qkv"),
        ("bert.encoder.layer.1.intermediate.dense.weight", nan, "encoder.layer.1.intermediate.dense"),
        ("bert.encoder.layer.1.output.LayerNorm.weight", nan, "encoder.layer.1.output.LayerNorm"),
        ("classifier.bias", inf, "classifier"),
    ] {
        let mut engine = engine(&config, &policy, &|_| Ok(()), SETTINGS, 100);
        let micros = [micro(&[3], 2, 2, 20), micro(&[9, 4], 2, 1, 0)];
        engine.step(&micros, 1e-3, 1, false).unwrap();
        let mut params = engine.model.registry.params.iter_mut().map(|(_, p)| p);
        let param = params.find(|p| p.name.split(" + ").any(|name| name == key)).unwrap();
        let mut value = param.value.dense().to_f64();
        // first row, last part: of a stack, q and v
        value[1] = bad;
        *value.last_mut().unwrap() = bad;
        param.value.dense_mut().write_f64(value);
        drop(params);
        let state = |engine: &Engine| {
            format!("{:?} {:?}", weights(engine), engine.gradient.norms.as_ref().map(|n| snapshot(n)))
        };
        let before = state(&engine);
        let error = engine.step(&micros, 1e-3, 2, false).unwrap_err().to_string();
        let end = format!("; the first output that is not finite is that of {site}");
        assert!(error.starts_with("the loss is ") && error.ends_with(&end), "{key} = {bad}: {error}");
        assert_eq!(before, state(&engine), "{key}: nothing changes");
        let live = engine.model.registry.params.device().meter().live();
        assert_eq!((live.kept, live.gradients, live.workspace), (0, 0, 0), "{key}");
    }
}

/// The loss may be finite where a gradient is not: that step too changes no weight, and names the parameter nearest to the loss. In the
/// backward pass, the weights nearer to the loss are changed by then, and no other.
#[test]
fn a_gradient_that_is_not_finite_is_located() {
    for optim in [SETTINGS, IN_BACKWARD] {
        locate_a_gradient_that_is_not_finite(optim);
    }
}

fn locate_a_gradient_that_is_not_finite(optim: Hyperparameters) {
    let config = config([20, 1, 2, 17, 1]);
    let mut engine = engine(&config, &Arc::new(Policy::exact()), &|_| Ok(()), optim, 0);
    let mut micro = micro(&[9, 4], 1, 1, 0);
    // (1e19)² is finite in f32, and so is the head's gradient; times the head's weights it is not
    micro.labels = Some(Labels::Value(vec![1e19, 1e19]));
    for (_, p) in engine.model.registry.params.iter_mut() {
        match p.name.as_str() {
            "classifier.weight" => p.value.dense_mut().write_f64(std::iter::repeat_n(1e25, 20)),
            "bert.pooler.dense.weight" => p.value.dense_mut().write_f64(std::iter::repeat_n(0.0, 400)),
            _ => {}
        }
    }
    let before = weights(&engine);
    let error = engine.step(&[micro], 1e-3, 1, false).unwrap_err().to_string();
    let already = "; with updates in the backward pass, weights nearer to the loss are updated already";
    let already = if optim.update == When::InBackward { already } else { "" };
    assert_eq!(error, format!("the gradient is not finite{already}\n  in bert.pooler.dense.bias"));
    for ((key, before), (_, after)) in before.iter().zip(weights(&engine)) {
        let nearer = key.starts_with("classifier") && optim.update == When::InBackward;
        assert_eq!(*before != after, nearer, "{key}");
    }
    assert_eq!(engine.model.registry.params.device().meter().live().gradients, 0);
}
