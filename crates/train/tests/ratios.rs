//! Ratios that follow the gradient, in real steps: the plan of all rows is what a measured step takes and bounds every other, and threads do
//! not matter.

mod common;

use std::sync::Arc;

use colrow_autograd::{CachePlace, Keep, NormSource, Policy, RowsOf, Sampling};
use colrow_models::config::Config;
use colrow_models::family::HeadKind;
use colrow_models::lora::{self, LoraConfig};
use colrow_models::model::Model;
use colrow_tensor::{DType, Device, Estimator, Result};
use colrow_train::data::{Batch, Labels, Lengths};
use colrow_train::machine::Resident;
use colrow_train::objective::of_model;
use colrow_train::plan::{Plan, Shape, plan};
use colrow_train::ratios::{AutoRatio, Ratios};
use colrow_train::step::Engine;

const TOKENS: usize = 1000;

fn bert() -> Config {
    let json = serde_json::json!({
        "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80, "vocab_size": 61,
        "max_position_embeddings": 160, "hidden_act": "gelu", "num_labels": 2,
    });
    Config::from_json(json.to_string().as_bytes(), "config.json".as_ref()).unwrap()
}

fn t5() -> Config {
    let json = serde_json::json!({
        "model_type": "t5", "d_model": 20, "d_kv": 6, "num_heads": 3, "d_ff": 44, "num_layers": 2, "vocab_size": 61,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false,
    });
    Config::from_json(json.to_string().as_bytes(), "config.json".as_ref()).unwrap()
}

/// A model, what of it is trained, and what its linears keep; the ratio of all that draw follows the gradient.
struct Case {
    config: Config,
    adapted: bool,
    keep: Keep,
    everywhere: bool,
}

impl Case {
    fn choose_trained(&self, model: &mut Model) -> Result<()> {
        if !self.adapted {
            return Ok(());
        }
        let targets = if self.config.family().head == HeadKind::Language {
            ["q", "v", "wo"]
        } else {
            ["query", "value", "*.dense"]
        };
        let settings = LoraConfig {
            lora_rank: 3,
            alpha: 6.0,
            dropout: 0.1,
            rank_stabilised: false,
            targets: targets.map(str::to_owned).to_vec(),
            modules_to_save: vec![],
            ..LoraConfig::default()
        };
        lora::adapt(model, &settings, 1)?;
        model.registry.freeze(|key| !lora::is_adapter_key(key))
    }

    fn policy(&self, ratio: f32) -> Arc<Policy> {
        let keep = match self.keep {
            Keep::Rows(sampling) => Keep::Rows(Sampling { ratio, ..sampling }),
            other => other,
        };
        Arc::new(match self.everywhere {
            true => Policy::everywhere(keep),
            false => common::paper(&self.config, &|model| self.choose_trained(model), keep),
        })
    }

    fn auto(&self) -> Vec<(String, RowsOf)> {
        let mut model = Model::new(self.config.clone(), &Device::meta(1), DType::F32);
        self.choose_trained(&mut model).unwrap();
        let draws = |site: &str| matches!(self.policy(1.0).keep(site), Keep::Rows(_));
        model.sites().into_iter().filter(|s| draws(&s.name)).map(|s| (s.name, s.rows)).collect()
    }

    fn lengths(&self, sources: &[u32]) -> Lengths {
        let targets =
            (self.config.family().head == HeadKind::Language).then(|| sources.iter().map(|l| 1 + l % 4).collect());
        Lengths { sources: sources.to_vec(), targets }
    }

    fn plan(&self, ratio: f32, micros: &[&[u32]]) -> Plan {
        plan(&Shape {
            processes: 1,
            rounds: 1,
            config: &self.config,
            objective: of_model(&self.config, 0),
            choose_trained: &|model| self.choose_trained(model),
            optim: common::ADAMW,
            policy: self.policy(ratio),
            auto: &self.auto(),
            evaluated: &[],
            resident: Resident::default(),
            host: 0,
            mapped: 0,
            micros: &micros.iter().map(|sources| self.lengths(sources)).collect::<Vec<_>>(),
            cached_tokens: TOKENS,
            threads: rayon::current_num_threads(),
        })
        .unwrap()
    }

    fn engine(&self, every: u64) -> Engine {
        let mut model = Model::new(self.config.clone(), &Device::cpu(), DType::F32);
        model.init(3);
        self.choose_trained(&mut model).unwrap();
        let policy = self.policy(0.3);
        let ratios = Ratios::new(AutoRatio { every, share: 0.025 }, &self.auto());
        let mut engine = common::engine_of(model, common::ADAMW).keeping(policy, TOKENS, CachePlace::Memory).unwrap();
        (engine.gradient.ratios, engine.gradient.dropout) = (Some(ratios), true);
        engine
    }

    fn micros(&self, sources: &[&[u32]], step: u64) -> Vec<Batch> {
        let micro = |(i, sources): (usize, &&[u32])| {
            let lengths = self.lengths(sources);
            let mut micro = of_model(&self.config, 0).batch_of_lengths(&lengths);
            let number = |i: usize| (i as u64 * 31 + step * 17) % 61;
            micro.tokens.ids.iter_mut().enumerate().for_each(|(i, id)| *id = number(i) as u32);
            if let Some(Labels::Class(classes)) = &mut micro.labels {
                classes.iter_mut().enumerate().for_each(|(i, c)| *c = i as u32 % 2);
            }
            if let Some(targets) = &mut micro.targets {
                targets.ids.iter_mut().enumerate().for_each(|(i, t)| *t = number(7 * i) as u32);
            }
            let first = 100 * i as u64;
            micro.places = Some((first..).take(micro.tokens.ids.len()).collect());
            micro.target_places =
                lengths.targets.map(|t| (200 + first..).take(t.iter().sum::<u32>() as usize).collect());
            micro
        };
        sources.iter().enumerate().map(micro).collect()
    }
}

fn cases() -> impl Iterator<Item = (String, Case)> {
    let norms = [NormSource::Current, NormSource::Cached, NormSource::Uniform];
    let all = norms.into_iter().flat_map(|n| [false, true].map(|e| (n, e)));
    let all = all.flat_map(|(n, e)| [(bert(), false), (bert(), true), (t5(), false), (t5(), true)].map(|c| (n, e, c)));
    all.map(|(norms, everywhere, (config, adapted))| {
        let keep = Keep::Rows(Sampling { estimator: Estimator::Pps, ratio: 0.3, norms, uniform: 0.1 });
        let text = config.family().head == HeadKind::Language;
        let name = format!("{norms:?}, everywhere {everywhere}, adapted {adapted}, text to text {text}");
        (name, Case { config, adapted, keep, everywhere })
    })
}

const STEPS: [&[&[u32]]; 3] = [&[&[7, 3, 12]], &[&[5, 2], &[9, 1, 70], &[4]], &[&[8; 10]]];

#[test]
fn the_plan_is_that_of_a_measured_step_and_bounds_all_others() {
    for (name, case) in cases() {
        for sources in STEPS {
            let what = format!("{name}, {sources:?}");
            let (all, some) = (case.plan(1.0, sources), case.plan(0.3, sources));
            let mut engine = case.engine(2);
            for step in 1..=6 {
                let stats = engine.step(&case.micros(sources, step), 1e-3, step, false).unwrap();
                assert_eq!(stats.ledger.total(), stats.kept_bytes, "{what}");
                assert!(stats.kept_bytes <= all.kept_bytes, "{what}, step {step}: kept");
                assert!(stats.peak.total() <= all.peak_bytes, "{what}, step {step}: peak");
                if step == 2 {
                    // the ratios have not moved yet
                    assert_eq!((&stats.ledger, stats.peak), (&some.ledger, some.peak_bytes_by_class), "{what}");
                }
                let live = engine.model.registry.params.device().meter().live();
                assert_eq!((live.kept, live.gradients, live.workspace), (0, 0, 0), "{what}");
            }
            let ratios = engine.gradient.ratios.take().unwrap();
            let moved = ratios.sites().iter().filter(|s| s.ratio != 0.3).count();
            assert!(moved > 0, "{what}");
            // with all rows too
            engine.gradient.ratios = Some(Ratios::new(AutoRatio { every: 1, share: 0.025 }, &case.auto()));
            engine.gradient.policy = case.policy(1.0);
            let stats = engine.step(&case.micros(sources, 9), 1e-3, 9, false).unwrap();
            assert_eq!((stats.ledger, stats.peak), (all.ledger, all.peak_bytes_by_class), "{what}");
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_ratio() {
    let sources: &[&[u32]] = &[&[100, 77, 3, 60], &[31, 64, 64]];
    for (name, case) in cases().filter(|(_, case)| !case.everywhere) {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut engine = case.engine(1);
                let losses: Vec<f64> = (1..=4)
                    .map(|step| engine.step(&case.micros(sources, step), 1e-3, step, false).unwrap().loss)
                    .collect();
                (losses, engine.gradient.ratios.unwrap().sites().to_vec())
            })
        };
        let one = run(1);
        assert!(one.1.iter().any(|site| site.ratio != 0.3));
        for threads in [2, 3] {
            assert!(run(threads) == one, "{name}, {threads} threads");
        }
    }
}
