//! `train.weights = "bf16"` on the command line.

mod common;

use colrow_models::checkpoint::weights::{Dtype, Weights};
use common::Place;
use serde_json::Value;

/// Plan and run agree on weights, a resumed run is the run, the model is saved in bf16 and evaluates to the run's own figures.
#[test]
fn runs_are_planned_resumed_and_saved() {
    let place = Place::new();
    place.write("recipe.toml", common::RECIPE.replace("classify", "sst2"));
    let sets = [
        "train.weights=bf16",
        "train.save_every=3",
        "train.keep_checkpoints=9",
        "train.steps=8",
        "train.eval_every=8",
        "optim.lr=1e-2",
    ];
    let command = |first: &[&str], output: &str| -> Value {
        let output = format!("output={output}");
        let sets = sets.iter().copied().chain([&*output]).flat_map(|set| ["--set", set]);
        place.ok_json(&first.iter().copied().chain(sets).collect::<Vec<_>>())
    };
    let planned = command(&["plan", "recipe.toml", "--json"], "none");
    let run = command(&["train", "recipe.toml", "--json"], "whole");
    for class in ["weights", "optimizer"] {
        assert_eq!(planned["peak_bytes_by_class"][class], run["peak_bytes_by_class"][class], "{class}");
    }
    command(&["train", "recipe.toml", "--json"], "parts");
    // as if the process had ended after step 3
    assert!(place.path("parts/checkpoints/step-3").exists());
    for step in place.names("parts/checkpoints").iter().filter(|step| *step != "step-3") {
        std::fs::remove_dir_all(place.path(&format!("parts/checkpoints/{step}"))).unwrap();
    }
    std::fs::remove_file(place.path("parts/summary.json")).unwrap();
    command(&["train", "recipe.toml", "--json", "--resume"], "parts");
    assert_eq!(place.metrics("whole"), place.metrics("parts"));
    assert!(place.read("whole/model/model.safetensors") == place.read("parts/model/model.safetensors"));

    let saved = Weights::open(&place.path("whole/model")).unwrap();
    assert_eq!(saved.dtype("bert.encoder.layer.0.output.dense.weight"), Some(Dtype::BF16));
    assert_eq!(saved.dtype("bert.encoder.layer.0.output.dense.bias"), Some(Dtype::F32));
    assert_eq!(place.json("whole/model/config.json")["torch_dtype"], "bfloat16");
    let eval = place.ok_json(&["eval", "--model", "whole/model", "--data", "dev.tsv", "--task", "sst2", "--json"]);
    let (loss, trained) = (eval["loss"].as_f64().unwrap(), run["final"]["loss"].as_f64().unwrap());
    // sums in f32 in another order
    assert!((loss - trained).abs() < 1e-5 * trained.max(0.1), "{loss} {trained}");

    let ran = place.run(&["plan", "recipe.toml", "--set", "train.weights=bf16", "--set", "train.method=lora"]);
    assert!(ran.code == Some(2) && ran.err.contains("adapters and biases stay in f32"), "{}", ran.err);
}
