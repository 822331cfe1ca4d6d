//! Frozen matrices in codes: what is computed, loaded, and counted.

mod common;

use std::sync::Arc;

use colrow_autograd::CachePlace;
use colrow_models::checkpoint::load::{self, Anew};
use colrow_models::checkpoint::save::save_model_folder;
use colrow_models::config::Config;
use colrow_models::family::HeadKind;
use colrow_models::model::Model;
use colrow_tensor::rng::Key;
use colrow_tensor::{BaseWeights, DType, Device, Weight};
use colrow_train::data::{Batch, Labels, Lengths};
use colrow_train::recipe::Recipe;
use colrow_train::step::{Engine, Hyperparameters};
use colrow_train::{keeping, trained};
use common::{model, recipe};

fn configs() -> Vec<Config> {
    let bert = serde_json::json!({
        "model_type": "bert", "hidden_size": 72, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 136, "vocab_size": 61, "max_position_embeddings": 40, "num_labels": 3,
    });
    let t5 = |tied: bool| {
        serde_json::json!({
            "model_type": "t5", "d_model": 72, "d_kv": 36, "num_heads": 2, "d_ff": 136, "num_layers": 2,
            "vocab_size": 61, "feed_forward_proj": if tied { "relu" } else { "gated-gelu" },
            "tie_word_embeddings": tied, "initializer_factor": 0.5,
        })
    };
    let parse = |json: serde_json::Value| Config::from_json(json.to_string().as_bytes(), "config.json".as_ref());
    [bert, t5(true), t5(false)].map(|json| parse(json).unwrap()).into()
}

fn engine(model: Model, recipe: &Recipe) -> Engine {
    let policy = Arc::new(keeping::policy(&recipe.keep, &model.sites()).unwrap());
    let engine = Engine::new(model, Hyperparameters::from(&recipe.optim));
    let mut engine = engine.keeping(policy, 1000, CachePlace::Memory).unwrap();
    (engine.gradient.key, engine.gradient.dropout) = (Key::new(5), true);
    engine
}

fn batch(engine: &Engine) -> Batch {
    let is_text = engine.model.config.family().head == HeadKind::Language;
    let lengths = Lengths { sources: vec![9, 14, 5], targets: is_text.then(|| vec![3, 2, 4]) };
    let mut batch = engine.objective.batch_of_lengths(&lengths);
    let key = Key::new(11);
    batch.tokens.ids.iter_mut().zip(0..).for_each(|(id, i)| *id = (key.uniform(i) * 61.0) as u32);
    if batch.labels.is_some() {
        batch.labels = Some(Labels::Class(vec![0, 2, 1]));
    }
    batch
}

/// Losses and gradient norms of some steps, and what was learned.
fn steps(mut engine: Engine) -> (Vec<(f64, f64)>, Vec<Vec<f64>>) {
    let batch = batch(&engine);
    let steps = (1..=3).map(|step| {
        let stats = engine.step(std::slice::from_ref(&batch), 1e-2, step, false).unwrap();
        (stats.loss, stats.grad_norm)
    });
    let steps = steps.collect();
    let learned = engine.model.registry.params.iter().filter(|(_, p)| p.trainable);
    (steps, learned.map(|(_, p)| p.value.dense().to_f64()).collect())
}

const METHODS: [&[&str]; 3] = [
    &["train.method=lora", "lora.dropout=0.1"],
    &["train.method=lora-fa"],
    &["train.freeze=['*.0.*', '{*embeddings,shared}.weight']"],
];

#[test]
fn a_model_in_codes_trains_as_the_model_of_its_numbers() {
    for config in configs() {
        for (base, method, policy) in [
            ("int8", METHODS[0], "exact"),
            ("int8", METHODS[0], "leanest"),
            ("bf16", METHODS[1], "lean"),
            ("int8", METHODS[2], "recompute"),
            ("bf16", METHODS[2], "exact"),
            ("nf4", METHODS[0], "lean"),
            ("nf4", METHODS[2], "leanest"),
        ] {
            let (base, keep) = (format!("model.base={base}"), format!("keep.policy={policy}"));
            let sets = [&[base.as_str(), &keep, "keep.norms=current"], method].concat();
            let coded = model(&config, &recipe(&sets));
            let mut dense = model(&config, &recipe(&sets[1..]));
            let (mut codes, most) = (0, if base == "model.base=nf4" { 0.5 } else { 0.02 });
            for ((_, from), (_, to)) in coded.registry.params.iter().zip(dense.registry.params.iter_mut()) {
                assert_eq!((&from.name, from.trainable), (&to.name, to.trainable));
                let Weight::Coded(from) = &from.value else { continue };
                let mut numbers = vec![0.0; to.value.len()];
                from.read_rows(0, &mut numbers);
                let before = to.value.dense().to_vec::<f32>();
                assert!(before != numbers && before.iter().zip(&numbers).all(|(a, b)| (a - b).abs() < most));
                to.value.dense_mut().write(&numbers);
                codes += 1;
            }
            assert!(codes >= 4, "{codes}");
            let (coded, dense) = (steps(engine(coded, &recipe(&sets))), steps(engine(dense, &recipe(&sets[1..]))));
            assert!(coded == dense, "{sets:?}: {:?} {:?}", coded.0, dense.0);
            assert!(coded.0.iter().all(|(_, norm)| *norm > 0.0));
        }
    }
}

/// What is loaded are the nearest codes, and the meter never sees more than they and what is trained; what is not in the checkpoint is coded too.
#[test]
fn a_checkpoint_is_read_into_codes() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("tokenizer.json"), "{}").unwrap();
    for (i, config) in configs().into_iter().enumerate() {
        let folder = dir.path().join(i.to_string());
        let mut whole = Model::new(config.clone(), &Device::cpu(), DType::F32);
        whole.init(7);
        let saved = whole.registry.saved(|e| !e.key.contains("pooler"));
        save_model_folder(&folder, &whole.config, &saved, &source, None).unwrap();
        for base in ["int8", "bf16", "nf4"] {
            let recipe = recipe(&["train.method=lora", "train.modules_to_save=[]", &format!("model.base={base}")]);
            let device = Device::cpu();
            let mut blank = trained::meta_model(config.clone(), &recipe).unwrap();
            blank.move_to(&device);
            let weights = device.meter().live().weights;
            let anew = Anew { head: true, body: true };
            let model = load::read(&folder, blank, 0, anew).unwrap().model;
            assert_eq!((device.meter().peak().total(), device.meter().live().weights), (weights, weights));
            let dense = load::model(&folder, config.clone(), &Device::cpu(), DType::F32, 0, anew).unwrap().model;
            let (mut coded, mut bytes, mut numbers) = (0, 0, 0);
            for ((_, p), (_, dense)) in model.registry.params.iter().zip(dense.registry.params.iter()) {
                let Weight::Coded(codes) = &p.value else { continue };
                let want = dense.value.coded(codes.format);
                let Weight::Coded(want) = &want else { panic!("codes") };
                assert_eq!(codes.codes.to_vec::<u8>(), want.codes.to_vec::<u8>(), "{}", p.name);
                assert_eq!(codes.scale.to_vec::<f32>(), want.scale.to_vec::<f32>(), "{}", p.name);
                let scales = [codes, want].map(|x| x.nested.as_ref().map(|nested| nested.codes.to_vec::<u8>()));
                assert_eq!(scales[0], scales[1], "{}", p.name);
                (coded, bytes, numbers) = (coded + 1, bytes + p.value.bytes(), numbers + p.value.len());
            }
            // rows of 72 and 136 columns have a group that is not whole
            let most = match base {
                "int8" => 1.0 + 4.0 * 2.0 / 72.0,
                "nf4" => 0.5 + 2.0 / 72.0 + 0.01,
                _ => 2.0,
            };
            assert!(coded >= 8 && bytes as f64 <= most * numbers as f64, "{bytes} of {numbers}");
        }
    }
}

/// Norms, biases, adapters, and what attention reads are not coded, nor is what is trained.
#[test]
fn only_frozen_matrices_of_products_and_tables_are_coded() {
    for config in configs() {
        let with = |set: &str| recipe(&["train.method=lora-fa", set]);
        let model = model(&config, &with("model.base=int8"));
        for (_, p) in model.registry.params.iter() {
            let dense = ["LayerNorm", "layer_norm", ".bias", "lora_", "relative_attention_bias", "classifier"];
            let is_coded = matches!(p.value, Weight::Coded(_));
            assert_eq!(is_coded, !dense.iter().any(|part| p.name.contains(part)), "{}", p.name);
        }
        let bytes = |base: BaseWeights| {
            let model = trained::meta_model(config.clone(), &with(&format!("model.base={base}"))).unwrap();
            model.registry.params.iter().map(|(_, p)| p.value.bytes()).sum::<usize>()
        };
        let [f32, bf16, int8, nf4] =
            [BaseWeights::F32, BaseWeights::Bf16, BaseWeights::Int8, BaseWeights::Nf4].map(bytes);
        assert!(nf4 < int8 && int8 < bf16 && bf16 < f32, "{f32} {bf16} {int8} {nf4}");
    }
    let nothing =
        trained::meta_model(configs().remove(0), &recipe(&["model.base=int8", "train.freeze=['*LayerNorm*']"]));
    let e = nothing.unwrap_err().to_string();
    assert!(e.contains("model.base: \"int8\" is for matrices that are not trained") && e.contains("\"lora\""), "{e}");
}
