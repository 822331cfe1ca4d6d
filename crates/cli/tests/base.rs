//! `model.base`: runs whose frozen matrices are held in codes.

mod common;

use colrow_models::checkpoint::load::{self, Anew};
use colrow_models::checkpoint::save::save_model_folder;
use colrow_models::checkpoint::weights::Weights;
use colrow_models::config::Config;
use colrow_tensor::{BaseWeights, DType, Device, Format, Named, Weight};
use common::{Place, config, rows, t5_config, tsv};
use serde_json::Value;

fn numbers(place: &Place, file: &str, key: &str) -> Vec<f32> {
    let weights = Weights::open_file(&place.path(file)).unwrap();
    let mut numbers = vec![0.0; weights.shape(key).unwrap_or_else(|| panic!("{key}")).iter().product()];
    weights.read(key, &mut numbers).unwrap();
    numbers
}

/// Two labels, and two models whose rows are no whole groups.
fn place() -> Place {
    let place = Place::new();
    let mut wide = config();
    wide["hidden_size"] = 72.into();
    place.model("bert", &wide);
    let mut t5 = t5_config();
    t5["d_model"] = 72.into();
    place.t5("t5", &t5);
    place.write("recipe.toml", common::RECIPE.replace("classify", "sst2"));
    place.write("train.tsv", tsv(&rows(40, 1, None)));
    place
}

/// Writes `saved`, a model tuned from `source`, with what its frozen matrices lose in codes taken off.
fn with_the_numbers_of_codes(place: &Place, source: &str, saved: &str, format: Format, to: &str) {
    let load = |folder: &str| {
        let folder = place.path(folder);
        let anew = Anew { head: true, body: false };
        load::model(&folder, Config::open(&folder).unwrap(), &Device::cpu(), DType::F32, 0, anew).unwrap().model
    };
    let (original, mut model) = (load(source), load(saved));
    for ((_, from), (_, to)) in original.registry.params.iter().zip(model.registry.params.iter_mut()) {
        assert_eq!(from.name, to.name);
        let dense = ["LayerNorm", "layer_norm", ".bias", "relative_attention_bias", "classifier"];
        if dense.iter().any(|part| from.name.contains(part)) {
            continue;
        }
        let mut codes = vec![0.0; from.value.len()];
        let Weight::Coded(coded) = from.value.coded(format) else { unreachable!() };
        coded.read_rows(0, &mut codes);
        let (numbers, tuned) = (from.value.dense().to_vec::<f32>(), to.value.dense().to_vec::<f32>());
        let tuned = tuned.iter().zip(numbers.iter().zip(codes)).map(|(tuned, (number, code))| tuned - number + code);
        to.value.dense_mut().write(&tuned.collect::<Vec<_>>());
    }
    let saved = model.registry.saved(|_| true);
    save_model_folder(&place.path(to), &model.config, &saved, &place.path(source), None).unwrap();
}

/// The saved model without what the adapter or the biases bring is the checkpoint, to the bit; plan and run agree; a resumed run is the run.
#[test]
fn runs_over_codes_are_planned_resumed_and_merged() {
    let place = place();
    for (model, base, method) in [
        ("bert", BaseWeights::Int8, "lora"),
        ("t5", BaseWeights::Bf16, "lora"),
        ("t5", BaseWeights::Int8, "lora-fa"),
        ("bert", BaseWeights::Int8, "bitfit"),
        ("bert", BaseWeights::Nf4, "lora"),
        ("t5", BaseWeights::Nf4, "lora"),
    ] {
        let name = format!("{model}-{base}-{method}");
        let path = format!("model.path=./{model}");
        let (base_is, method) = (format!("model.base={base}"), format!("train.method={method}"));
        let sets = [
            &*path,
            &base_is,
            &method,
            "train.save_every=3",
            "train.keep_checkpoints=9",
            "train.steps=8",
            "train.eval_every=8",
            "keep.policy=lean",
            "optim.lr=1e-2",
        ];
        let args = |output: &str| {
            let sets = sets.iter().map(|s| (*s).to_owned()).chain([format!("output={output}")]);
            sets.flat_map(|s| ["--set".to_owned(), s]).collect::<Vec<_>>()
        };
        let command = |first: &[&str], output: &str| -> Value {
            let args = args(output);
            place.ok_json(&first.iter().copied().chain(args.iter().map(String::as_str)).collect::<Vec<_>>())
        };
        let (whole, parts) = (format!("{name}-whole"), format!("{name}-parts"));
        let planned = command(&["plan", "recipe.toml", "--json"], "none");
        let run = command(&["train", "recipe.toml", "--json"], &whole);
        let (planned, peak) = (&planned["peak_bytes_by_class"], &run["peak_bytes_by_class"]);
        for class in ["weights", "optimizer"] {
            assert_eq!(planned[class], peak[class], "{name}: {class}");
        }
        assert!(run["peak_bytes"].as_u64() <= run["planned_peak_bytes"].as_u64(), "{name}");
        command(&["train", "recipe.toml", "--json"], &parts);
        // as if the process had ended after step 3
        assert!(place.path(&format!("{parts}/checkpoints/step-3")).exists(), "{name}");
        for step in place.names(&format!("{parts}/checkpoints")).iter().filter(|step| *step != "step-3") {
            std::fs::remove_dir_all(place.path(&format!("{parts}/checkpoints/{step}"))).unwrap();
        }
        std::fs::remove_file(place.path(&format!("{parts}/summary.json"))).unwrap();
        command(&["train", "recipe.toml", "--json", "--resume"], &parts);
        assert_eq!(place.metrics(&whole), place.metrics(&parts), "{name}");
        let adapter = method.contains("lora");
        let file = if adapter { "model/adapter_model.safetensors" } else { "model/model.safetensors" };
        assert!(place.read(&format!("{whole}/{file}")) == place.read(&format!("{parts}/{file}")), "{name}");

        let saved = if adapter {
            let out = format!("{name}-merged");
            let merge = |more: &[&str], out: &str| {
                let ran = place.run(&[&["merge", "--model", &format!("{whole}/model"), "--out", out], more].concat());
                assert_eq!(ran.code, Some(0), "{}", ran.err);
                ran.err
            };
            let said = merge(&[], &out);
            assert!(said.contains(&format!("note: merged onto the checkpoint's weights as they are; the adapter was trained over the numbers that they are in {base}: --onto {base}")), "{said}");
            assert_eq!(merge(&["--onto", base.name()], &format!("{name}-onto")), "");
            let other = if base == BaseWeights::Int8 { "nf4" } else { "int8" };
            assert!(
                merge(&["--onto", other], &format!("{name}-other"))
                    .contains(&format!("--onto {base} merges onto those"))
            );
            out
        } else {
            format!("{whole}/model")
        };
        let source = format!("{model}/model.safetensors");
        let untouched = match model {
            "t5" => ["shared.weight", "encoder.block.0.layer.1.DenseReluDense.wi.weight"],
            _ => ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.1.output.dense.weight"],
        };
        for key in untouched {
            assert!(
                numbers(&place, &format!("{saved}/model.safetensors"), key) == numbers(&place, &source, key),
                "{key}"
            );
        }
        // the saved model has the checkpoint's numbers, the run had those of their codes
        let as_run = format!("{name}-as-run");
        with_the_numbers_of_codes(&place, model, &saved, base.format().unwrap(), &as_run);
        if adapter {
            let [onto, as_run] =
                [format!("{name}-onto"), as_run.clone()].map(|folder| format!("{folder}/model.safetensors"));
            for key in untouched {
                assert!(numbers(&place, &onto, key) == numbers(&place, &as_run, key), "{name} {key}");
                assert!(numbers(&place, &onto, key) != numbers(&place, &source, key), "{name} {key}");
            }
            assert!(!place.text(&format!("{name}-onto/colrow.json")).contains("base"));
        }
        let eval_of = if adapter { format!("{name}-onto") } else { as_run };
        let eval = place.ok_json(&["eval", "--model", &eval_of, "--data", "dev.tsv", "--task", "sst2", "--json"]);
        let (loss, trained) = (eval["loss"].as_f64().unwrap(), run["final"]["loss"].as_f64().unwrap());
        // sums in f32 in another order, through layers whose random matrices stretch by about two
        assert!((loss - trained).abs() < 1e-4 * trained.max(0.1), "{name}: {loss} {trained}");
    }
}

/// A checkpoint does not hold what is not trained: a run goes on over the weights that it began with, and no others.
#[test]
fn other_frozen_weights_are_no_resume() {
    let place = place();
    for (base, method) in [("f32", "lora"), ("int8", "lora"), ("int8", "bitfit"), ("f32", "bitfit"), ("nf4", "lora")] {
        let run = format!("{base}-{method}");
        let sets = [format!("model.base={base}"), format!("train.method={method}"), format!("output={run}")];
        let sets = ["model.path=./bert", "train.steps=2"].into_iter().chain(sets.iter().map(String::as_str));
        let args = |steps| {
            let sets = sets.clone().chain([steps]).flat_map(|set| ["--set", set]);
            ["train", "recipe.toml", "--resume"].into_iter().chain(sets).collect::<Vec<_>>()
        };
        place.ok(&args("train.steps=2"));
        let weights = place.read("bert/model.safetensors");
        let mut others = weights.clone();
        // one number in the middle is doubled, or halved
        others[weights.len() / 8 * 4 + 3] ^= 1;
        place.write("bert/model.safetensors", &others);
        let ran = place.run(&args("train.steps=4"));
        assert_eq!(ran.code, Some(1), "{run}: {}", ran.err);
        assert!(ran.err.contains("not those that this run began with") && ran.err.contains("./bert"), "{}", ran.err);
        place.write("bert/model.safetensors", &weights);
        place.ok(&args("train.steps=4"));
    }
}

#[test]
fn a_base_without_frozen_matrices_is_refused() {
    let place = place();
    for (sets, needles) in [
        (&["model.base=int8"][..], &["`model.base` = \"int8\" is for what is not trained", "train.freeze"][..]),
        (&["model.base=bf16", "train.freeze=['*LayerNorm*']"], &["model.base: \"bf16\" is for matrices", "\"lora\""]),
        (
            &["model.base=int4"],
            &["model.base: expected one of \"f32\", \"bf16\", \"int8\", \"nf4\", found the string \"int4\""],
        ),
    ] {
        let sets = sets.iter().flat_map(|s| ["--set", s]);
        let ran = place
            .run(&["plan", "recipe.toml", "--set", "model.path=./bert"].into_iter().chain(sets).collect::<Vec<_>>());
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        assert!(needles.iter().all(|needle| ran.err.contains(needle)), "{}", ran.err);
    }
    let frozen = ["model.path=./bert", "model.base=int8", "train.freeze=['*encoder*']", "train.steps=1"];
    let plan = |sets: &[&str]| {
        let sets = sets.iter().flat_map(|s| ["--set", s]);
        place.ok_json(&["plan", "recipe.toml", "--json"].into_iter().chain(sets).collect::<Vec<_>>())
    };
    let weights = |plan: &Value| plan["peak_bytes_by_class"]["weights"].as_u64().unwrap();
    assert!(weights(&plan(&frozen)) < weights(&plan(&[frozen[0], frozen[2], frozen[3]])));
}
