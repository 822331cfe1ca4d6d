//! T5 end to end: trained on GLUE's words, evaluated by its answers, adapted, planned; and what goes wrong with it.

mod common;

use common::{Place, rows, t5_config, tsv};
use serde_json::{Value, json};

fn place() -> Place {
    let place = Place::new();
    place.t5("t5", &t5_config());
    place.write("train.tsv", tsv(&rows(64, 1, None)));
    let recipe = place.text("recipe.toml").replace("./model", "./t5").replace("classify", "sst2");
    place.write("recipe.toml", recipe);
    place
}

/// 64 examples are learned by heart, whatever is kept; the answers are words.
#[test]
fn a_t5_learns_64_examples() {
    let place = place();
    for (i, keep) in ["keep.policy='exact'", "keep.policy='paper'"].into_iter().enumerate() {
        let output = format!("output='run{i}'");
        let sets = [keep, &output, "train.epochs=40", "optim.lr=1e-2", "data.dev='train.tsv'", "train.batch=16"];
        let summary = place.train(&sets);
        assert_eq!(summary["final"]["accuracy"], 1.0, "{keep}: {summary}");
        assert_eq!(summary["final"]["loss"].as_f64().map(|loss| loss < 0.1), Some(true));
        let model = format!("run{i}/model");
        let eval = ["eval", "--model", &model, "--data", "train.tsv", "--task", "sst2", "--json"];
        let eval = place.ok_json(&eval);
        assert_eq!((&eval["accuracy"], &eval["examples"]), (&json!(1.0), &json!(64)));
        let out = place.ok(&["predict", "--model", &model, "--data", "train.tsv", "--task", "sst2"]);
        let truth = rows(64, 1, None);
        for (line, (_, label)) in out.lines().zip(&truth) {
            let line: Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["label"], ["negative", "positive"][*label]);
        }
        assert_eq!(out.lines().count(), 64);
    }
}

#[test]
fn the_plan_is_what_the_run_needs() {
    let place = place();
    // every source as long as the longest, so that every batch is the largest
    place.write("train.tsv", tsv(&rows(48, 1, Some(9))));
    for (i, set) in ["keep.policy='exact'", "keep.policy='paper'", "train.method='lora'"].into_iter().enumerate() {
        let output = format!("output='run{i}'");
        let sets = [set, &output, "train.epochs=1", "train.accumulate=2", "keep.ratio=0.5"];
        let mut args = vec!["plan", "recipe.toml", "--json"];
        args.extend(sets.iter().flat_map(|s| ["--set", s]));
        let plan = place.ok_json(&args);
        let run = place.train(&sets);
        for key in ["kept_bytes", "peak_bytes", "peak_bytes_by_class"] {
            assert_eq!(plan[key], run[key], "{set}: {key}");
        }
    }
}

/// A run that was stopped and resumed gives the bits of one that was not, with adapters and remembered norms.
#[test]
fn resume_with_adapters() {
    let place = place();
    let sets = [
        "train.method='lora'",
        "keep.policy='paper'",
        "train.save_every=3",
        "train.keep_checkpoints=9",
        "optim.lr=1e-2",
    ];
    let with = |more: &[&'static str]| [&sets[..], more].concat();
    place.train(&with(&["output='whole'", "train.steps=8"]));
    place.train(&with(&["output='parts'", "train.steps=8"]));
    // as if the process had ended after step 3
    assert!(place.path("parts/checkpoints/step-3").exists());
    for name in place.names("parts/checkpoints").iter().filter(|name| *name != "step-3") {
        std::fs::remove_dir_all(place.path(&format!("parts/checkpoints/{name}"))).unwrap();
    }
    std::fs::remove_file(place.path("parts/summary.json")).unwrap();
    let mut args = vec!["train", "recipe.toml", "--json", "--resume"];
    let all = with(&["output='parts'", "train.steps=8"]);
    args.extend(all.iter().flat_map(|s| ["--set", s]));
    place.ok_json(&args);
    assert_eq!(place.metrics("whole"), place.metrics("parts"));
    let file = "model/adapter_model.safetensors";
    assert_eq!(place.read(&format!("whole/{file}")), place.read(&format!("parts/{file}")));

    let settings = place.json("whole/model/adapter_config.json");
    assert_eq!(
        (&settings["task_type"], &settings["target_modules"]),
        (&json!("SEQ_2_SEQ_LM"), &json!(["q", "k", "v"]))
    );
    place.ok(&["merge", "--model", "whole/model", "--out", "merged"]);
    let answers = |model: &str| place.ok(&["predict", "--model", model, "--data", "dev.tsv", "--task", "sst2"]);
    assert_eq!(answers("whole/model"), answers("merged"));
}

/// An example of each label.
fn blank_free(labels: &[&str]) -> String {
    labels.iter().map(|label| json!({"text": "so good", "label": label}).to_string() + "\n").collect()
}

/// What a model cannot answer, and which file its tokens are of, is said wherever the model is used.
#[test]
fn eval_and_predict_say_what_a_t5_cannot_write() {
    let place = place();
    let mut named = t5_config();
    named["id2label"] = json!({"0": "%", "1": "&"});
    place.t5("named", &named);
    place.write("named.jsonl", blank_free(&["%", "&"]));
    for command in ["eval", "predict"] {
        let ran = place.run(&[command, "--model", "named", "--data", "named.jsonl", "--task", "classify"]);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        for needle in [
            "warning: labels that the",
            "\"%\" becomes nothing",
            "warning: tokens are those of tokenizer.json: T5Tokenizer",
        ] {
            assert!(ran.err.contains(needle), "{needle} is not in {}", ran.err);
        }
    }
}

/// The labels of a model whose folder does not tell them are those of the data.
#[test]
fn a_t5_of_unknown_labels_is_evaluated_by_the_data_s() {
    let place = place();
    place.write("two.jsonl", blank_free(&["good", "bad"]));
    let eval = place.ok_json(&["eval", "--model", "t5", "--data", "two.jsonl", "--json"]);
    let names: Vec<_> =
        eval["classes"].as_array().unwrap().iter().map(|class| class["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["bad", "good"], "{eval}");
    let predicted = place.ok(&["predict", "--model", "t5", "--data", "two.jsonl"]);
    assert!(!predicted.contains("is_label"), "{predicted}");
    place.ok(&["predict", "--model", "t5", "--data", "two.jsonl", "--out", "two.csv"]);
    let table = place.text("two.csv");
    let fields = table.lines().map(|line| line.split(',').count()).collect::<Vec<_>>();
    assert_eq!(fields, [4, 4, 4], "{table}");
}

#[test]
fn bad_input() {
    let place = place();
    let fails = |sets: &[&str], code: i32, needles: &[&str]| {
        let mut args = vec!["train", "recipe.toml", "--json"];
        args.extend(sets.iter().flat_map(|s| ["--set", s]));
        let ran = place.run(&args);
        assert_eq!(ran.code, Some(code), "{}", ran.err);
        assert!(!ran.err.contains("panicked"), "{}", ran.err);
        needles.iter().for_each(|needle| assert!(ran.err.contains(needle), "{needle:?} is not in {}", ran.err));
    };
    // weights of v1.1 under a configuration of v1.0, and the other way round
    let mut gated = t5_config();
    (gated["feed_forward_proj"], gated["tie_word_embeddings"]) = (json!("gated-gelu"), json!(false));
    place.t5("gated", &gated);
    let config = |name: &str| place.text(&format!("{name}/config.json"));
    let (relu, gated) = (config("t5"), config("gated"));
    place.write("gated/config.json", &relu);
    fails(
        &["model.path=./gated"],
        1,
        &["DenseReluDense.wi_0.weight", "wi_0 and wi_1 are of T5 v1.1", "feed_forward_proj = \"gated-gelu\""],
    );
    let weights = place.read("t5/model.safetensors");
    place.write("gated/config.json", &gated);
    place.write("gated/model.safetensors", &weights);
    fails(&["model.path=./gated"], 1, &["DenseReluDense.wi.weight", "wi is of T5 v1.0"]);

    place.write("empty.tsv", "sentence\tlabel\ngood film\t1\nbad film\t \n");
    fails(&["data.train=empty.tsv"], 1, &["the label is missing", "line 3", "empty.tsv"]);
    place.write("blank.jsonl", "{\"text\": \"a\", \"label\": \"good\"}\n{\"text\": \"b\", \"label\": \"\\u00ad\"}\n");
    let blank = ["task=classify", "data.train=blank.jsonl", "data.dev=blank.jsonl"];
    fails(&blank, 1, &["cannot write apart: \"\\u{ad}\" becomes nothing", "t5/tokenizer.json", "hint: rename"]);
    place.write("alike.jsonl", blank_free(&["bad <", "bad >", "good"]));
    let alike = ["task=classify", "data.train=alike.jsonl", "data.dev=alike.jsonl"];
    fails(&alike, 1, &["\"bad <\" and \"bad >\" both become \"bad\""]);
    place.write("long.jsonl", blank_free(&["so good so good", "bad"]));
    let long = ["task=classify", "data.train=long.jsonl", "data.dev=long.jsonl", "data.max_target_length=4"];
    fails(
        &long,
        2,
        &["data.max_target_length: ", "found 4: \"so good so good\" takes 5", "set data.max_target_length = 5"],
    );
    fails(&["data.max_target_length=1"], 2, &["data.max_target_length: expected a whole number of at least 2"]);
    fails(&["train.method=lora", "lora.targets=[\"query\"]"], 2, &["`query` names no linear", "hint: linears end in "]);
    fails(&["train.modules_to_save=[\"classifier\"]", "train.method=lora"], 2, &["`classifier` names no module"]);
}

#[test]
fn what_a_t5_has_not_is_not_spoken_of() {
    let place = place();
    for (sets, what, hint) in [
        (
            &["train.method=bitfit"][..],
            "\"bitfit\" trains biases, and this model has none",
            "choose \"lora\" or \"full\"",
        ),
        (&["train.freeze=['*']"], "every parameter is frozen", "leave out some of the patterns"),
    ] {
        let sets = sets.iter().flat_map(|s| ["--set", s]);
        let ran = place.run(&["plan", "recipe.toml"].into_iter().chain(sets).collect::<Vec<_>>());
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        assert!(ran.err.contains(what) && ran.err.contains(hint) && !ran.err.contains("classifier"), "{}", ran.err);
    }
}
