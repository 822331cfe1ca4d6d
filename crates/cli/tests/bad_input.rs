//! Bad input of every kind ends in an error that says what, where and what to do, with the right exit code, nothing on
//! standard output and nothing half-written left behind.

mod common;

use colrow_models::checkpoint::safetensors::{Data, Saved, write};
use colrow_models::checkpoint::weights::Weights;
use common::{Place, config, npy, t5_config, tokenizer, tsv};
use serde_json::json;

/// Runs a command that must fail with `code` and a message that holds all of `needles`, and leave no run folder.
#[track_caller]
fn fails(place: &Place, args: &[&str], code: i32, needles: &[&str]) {
    let before = place.names(".");
    let ran = place.run(args);
    assert_eq!(ran.code, Some(code), "{args:?}: {}", ran.err);
    assert_eq!(ran.out, "", "{args:?} printed a result");
    assert!(ran.err.contains("error: "), "{args:?}: {}", ran.err);
    assert!(!ran.err.contains("panicked"), "{args:?}: {}", ran.err);
    for needle in needles {
        assert!(ran.err.contains(needle), "{args:?}: expected {needle:?} in\n{}", ran.err);
    }
    assert_eq!(place.names("."), before, "{args:?} left something");
}

#[track_caller]
fn train_fails(place: &Place, sets: &[&str], code: i32, needles: &[&str]) {
    let mut args = vec!["train", "recipe.toml", "--json"];
    args.extend(sets.iter().flat_map(|s| ["--set", s]));
    fails(place, &args, code, needles);
}

#[test]
fn weight_files_that_are_none() {
    let place = Place::new();
    let whole = place.read("model/model.safetensors");
    let fails = |bytes: &[u8], needles: &[&str]| {
        place.write("model/model.safetensors", bytes);
        train_fails(&place, &[], 1, &[needles, &["model/model.safetensors"]].concat());
    };
    fails(&whole[..whole.len() - 5], &["truncated"]);
    fails(&whole[..40], &["truncated"]);
    fails(b"", &["safetensors"]);
    let mut oversized = whole.clone();
    oversized[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fails(&oversized, &["header"]);
    fails(b"\x80\x02}q\x00. a pickle, as torch.save wrote them once", &["safetensors"]);
}

#[test]
fn weights_of_another_model() {
    let place = Place::new();
    let mut wide = config();
    wide["hidden_size"] = json!(32);
    place.write("model/config.json", wide.to_string());
    let needles = &["expected shape (32, 32), found (16, 16)", "hint: config.json says hidden_size = 32"];
    train_fails(&place, &[], 1, needles);

    let mut shallow = config();
    shallow["num_hidden_layers"] = json!(1);
    place.write("model/config.json", shallow.to_string());
    train_fails(&place, &[], 1, &["encoder.layer.1.", "model"]);
}

#[test]
fn model_folders_that_lack_something() {
    let place = Place::new();
    std::fs::remove_file(place.path("model/tokenizer.json")).unwrap();
    train_fails(&place, &[], 1, &["expected tokenizer.json, found config.json", "in ./model", "hint: "]);
    place.write("model/tokenizer.json", "{\"version\": ");
    train_fails(&place, &[], 1, &["tokenizer.json", "cannot be read"]);

    place.write("model/config.json", json!({"model_type": "gpt2", "d_model": 512}).to_string());
    train_fails(&place, &[], 1, &["config of another family: found model_type \"gpt2\"", "model/config.json"]);
    std::fs::rename(place.path("model/model.safetensors"), place.path("model/pytorch_model.bin")).unwrap();
    train_fails(&place, &[], 1, &["config of another family: found model_type \"gpt2\""]);
    fails(&place, &["plan", "recipe.toml"], 1, &["config of another family: found model_type \"gpt2\""]);
    place.write("model/config.json", "[1, 2");
    train_fails(&place, &[], 1, &["expected a JSON object", "model/config.json"]);

    train_fails(&place, &["model.path=./absent"], 1, &["no such folder: ./absent"]);
    train_fails(&place, &["model.path=train.tsv"], 1, &["expected a model folder, found a file", "train.tsv"]);
    train_fails(&place, &["model.path=some/model"], 1, &["some/model", "HF_HUB_OFFLINE", "hint: pass a local folder"]);
}

#[test]
fn tokens_outside_the_vocabulary() {
    let place = Place::new();
    let more: Vec<_> = common::VOCABULARY.iter().copied().chain(["hello"]).collect();
    place.write("model/tokenizer.json", tokenizer(&more).to_string());
    place.write("train.tsv", "sentence\tlabel\nhello film\t1\nfilm\t0\n");
    let needles =
        &["token id 16 (\"hello\") is not below vocab_size = 16", "./model", "hint: do tokenizer.json and config.json"];
    train_fails(&place, &[], 1, needles);
    fails(&place, &["predict", "--model", "model", "--data", "train.tsv"], 1, &["token id 16", "in model"]);
}

#[test]
fn recipes() {
    let place = Place::new();
    train_fails(
        &place,
        &["optim.lrr=1"],
        2,
        &["--set optim.lrr=1", "unknown key `optim.lrr`; did you mean `optim.lr`?"],
    );
    train_fails(&place, &["nonsense"], 2, &["--set nonsense", "expected KEY=VALUE"]);
    train_fails(&place, &["keep.ratio=0"], 2, &["keep.ratio: expected a number in (0, 1] or \"auto\", found 0"]);
    train_fails(&place, &["keep.ratio=1.5"], 2, &["keep.ratio: expected a number in (0, 1] or \"auto\", found 1.5"]);
    train_fails(&place, &["task=mnlli"], 2, &["unknown task \"mnlli\"", "hint: did you mean mnli?"]);
    train_fails(
        &place,
        &["train.best_metric=f2"],
        2,
        &["train.best_metric: expected one of accuracy, f1, macro_f1, loss", "`f2`"],
    );
    let pattern = "keep.sites.'encoder.layer.9.*'.keep=rows";
    train_fails(&place, &[pattern], 2, &["`encoder.layer.9.*` names no site", "hint: sites are "]);
    train_fails(&place, &["train.freeze=['*']"], 2, &["train.freeze: every parameter is frozen", "hint: "]);
    train_fails(&place, &["train.freeze=['encodr.*']"], 2, &["train.freeze: `encodr.*` names no parameter", "hint: "]);
    let part = "train.freeze=['*.query.weight']";
    train_fails(&place, &[part], 2, &["names a part of", "query.weight", "hint: freeze all of them or none"]);
    train_fails(&place, &["data.max_length=2"], 2, &["maximum length of at least 3 tokens, found 2", "special tokens"]);
    train_fails(&place, &["data.max_length=33"], 2, &["data.max_length: expected at most 32", "found 33"]);
    let budget = ["train.batch_tokens=4"];
    train_fails(&place, &budget, 2, &["tokens, more than a batch may hold (4)", "hint: raise"]);

    place.write(
        "recipe.toml",
        "task = \"classify\"\nsede = 1\n[model]\npath = \"./model\"\n[train]\nbatch = 0\n[optim]\nlr = \"fast\"\n",
    );
    let needles = [
        "error: 3 problems in recipe",
        "recipe.toml:2: unknown key `sede`; did you mean `seed`?",
        "recipe.toml:6: train.batch: expected a whole number of at least 1, found 0",
        "recipe.toml:8: optim.lr: expected a number of at least 0, found the string \"fast\"",
    ];
    train_fails(&place, &[], 2, &needles);
    place.write("recipe.toml", "[model]\npath = \"./model\"\n");
    train_fails(&place, &[], 2, &["2 problems", "missing key `output`", "missing key `data.train`"]);
    fails(&place, &["plan", "recipe.toml"], 2, &["data.train"]);
    place.write("recipe.toml", b"task = \"\xff\"\n");
    train_fails(&place, &[], 2, &["UTF-8", "recipe.toml"]);
    fails(&place, &["train", "absent.toml"], 2, &["absent.toml", "expected a recipe"]);
}

#[test]
fn data_files() {
    let place = Place::new();
    let fails = |name: &str, content: &[u8], needles: &[&str]| {
        place.write(name, content);
        let set = format!("data.train={name}");
        train_fails(&place, &[&set], 1, &[needles, &[name]].concat());
    };
    fails("empty.tsv", b"", &["empty file"]);
    fails("header.csv", b"text,label\n", &["header only"]);
    fails("ragged.csv", b"text,label\ngood,1\nbad,0,0\n", &["fields", "line 3"]);
    fails("latin1.tsv", b"sentence\tlabel\ngood\t1\ncaf\xe9\t0\n", &["UTF-8", "line 3"]);
    fails("columns.tsv", b"words\tlabel\ngood\t1\nbad\t0\n", &["sentence", "words", "hint: "]);
    fails("unlabelled.tsv", b"sentence\tlabel\ngood\t1\nbad\t\n", &["label is missing", "line 3"]);
    fails("one.tsv", b"sentence\tlabel\ngood\t1\nfine\t1\n", &["at least two different labels", "only \"1\""]);
    fails("data.xlsx", b"PK", &["expected a .csv, .tsv", "found .xlsx", "hint: "]);
    fails("broken.jsonl", b"{\"text\": \"good\", \"label\": 1}\n{\"text\": \n", &["line 2"]);
    train_fails(&place, &["data.train=absent.tsv"], 1, &["no such file or folder", "absent.tsv"]);

    place.write("dev.tsv", "sentence\tlabel\ngood\t1\nbad\tmaybe\n");
    train_fails(&place, &[], 1, &["unknown label \"maybe\"", "known: 0, 1", "line 3", "dev.tsv"]);
    place.write("train.tsv", "sentence\tlabel\ngood\t1.5\nbad\tNaN\n");
    train_fails(&place, &["task=regress"], 1, &["NaN", "label is missing", "line 3", "train.tsv"]);
}

#[test]
fn folders_of_other_runs() {
    let place = Place::new();
    place.train(&["train.steps=1"]);
    let before = (place.read("run/recipe.toml"), place.read("run/metrics.jsonl"), place.read("run/summary.json"));
    train_fails(&place, &[], 1, &["this folder holds a run already", "in run", "hint: go on with it by --resume"]);
    let other = ["train", "recipe.toml", "--resume", "--set", "train.steps=2", "--set", "optim.lr=0.5"];
    fails(&place, &other, 1, &["another recipe", "optim.lr: ", "hint: "]);
    let after = (place.read("run/recipe.toml"), place.read("run/metrics.jsonl"), place.read("run/summary.json"));
    assert_eq!(before, after);
    train_fails(&place, &["output=train.tsv"], 1, &["expected a run folder, found a file", "train.tsv"]);
    train_fails(&place, &["output=train.tsv/run"], 1, &["cannot make the run folder", "train.tsv/run"]);
}

#[test]
fn command_lines() {
    let place = Place::new();
    fails(&place, &["trian", "recipe.toml"], 2, &["unrecognized subcommand 'trian'", "'train'"]);
    fails(&place, &["train"], 2, &["required", "<RECIPE>"]);
    fails(
        &place,
        &["train", "recipe.toml", "--threads", "0"],
        2,
        &["--threads", "expected a whole number from 1 to 1024"],
    );
    let bench = |more: &[&str], needles: &[&str]| {
        fails(&place, &[&["bench", "--model-config", "model/config.json", "--seq", "8"], more].concat(), 2, needles);
    };
    bench(&["--batch", "0"], &["'0'", "--batch", "expected a whole number from 1 to 1048576"]);
    bench(&["--ratio", "2"], &["--ratio: expected a number in (0, 1], found 2"]);
    bench(&["--keep", "lein"], &["'lein'", "--keep", "exact, paper, lean"]);
    bench(&["--estimator", "wtf"], &["'wtf'", "--estimator", "'wta'"]);
    fails(&place, &["bench", "--model-config", "model/config.json"], 2, &["--seq: expected at most 32", "found 128"]);
    fails(&place, &["bench", "--model-config", "absent.json"], 2, &["--model-config", "absent.json"]);
    let lengths = |text: &str, needles: &[&str]| {
        place.write("lengths", text);
        fails(&place, &["bench", "--model-config", "model/config.json", "--lengths-file", "lengths"], 2, needles);
    };
    lengths("8 7.5", &["--lengths-file: expected whole numbers from 1, found `7.5`", "in lengths"]);
    lengths("8\n0", &["found `0`"]);
    lengths("\n", &["expected at least one length, found none"]);
    lengths("8 33", &["--lengths-file: expected at most 32", "found 33"]);
    bench(&["--lengths-file", "lengths"], &["--seq", "--lengths-file", "cannot be used"]);
}

/// Every number of every command, and those of a recipe: beyond any sense they are errors of the command line, told at once.
#[test]
fn huge_numbers() {
    let place = Place::new();
    place.write("x.npy", npy(3, 2, &[1.0; 6]));
    place.write("lengths", "4294967295 4294967295");
    let huge = ["9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616", "1e300"];
    let t5 = ["bench", "--model-config", "t5/config.json", "--plan"];
    let bench = ["bench", "--model-config", "model/config.json", "--seq", "8", "--plan"];
    let estimate = ["estimate", "--x", "x.npy", "--dz", "x.npy"];
    let eval = ["eval", "--model", "model", "--data", "dev.tsv"];
    let predict = ["predict", "--model", "model", "--data", "dev.tsv"];
    let inspect = ["inspect", "recipe.toml"];
    place.t5("t5", &t5_config());
    let numbers: [(&[&str], &[&str]); 7] = [
        (&t5, &["--batch", "--seq", "--target", "--lora-rank"]),
        (&bench, &["--batch", "--steps", "--warmup", "--lora-rank", "--threads"]),
        (&estimate, &["--trials", "--threads"]),
        (&eval, &["--max-length", "--batch-tokens"]),
        (&predict, &["--max-length"]),
        (&inspect, &["--steps", "--passes", "--draws"]),
        (&["plan", "recipe.toml"], &["--threads"]),
    ];
    for (command, flags) in numbers {
        for (flag, n) in flags.iter().flat_map(|flag| huge.map(|n| (flag, n))) {
            fails(
                &place,
                &[command, &[*flag, n]].concat(),
                2,
                &["invalid value", flag, "expected a whole number from"],
            );
        }
    }
    fails(&place, &[&estimate[..], &["--trials", "1000001"]].concat(), 2, &["a whole number from 2 to 1000000"]);
    // each in its range, and together too many
    fails(&place, &[&t5[..], &["--batch", "1048576", "--seq", "1048576"]].concat(), 2, &["at most 33554432 tokens"]);
    fails(&place, &[&t5[..], &["--lengths-file", "lengths"]].concat(), 2, &["at most 33554432 tokens"]);
    for key in ["train.accumulate", "train.batch", "train.batch_tokens", "train.steps", "data.max_length", "lora.rank"]
    {
        for n in &huge[..4] {
            let set = format!("{key}={n}");
            fails(&place, &["plan", "recipe.toml", "--set", &set], 2, &[key, "expected a whole number of at most ", n]);
        }
    }
    // the largest that are in their range plan as what the data makes of them
    let ends =
        ["accumulate=1000000000", "batch=1000000000", "steps=1000000000000", "epochs=10000", "batch_tokens=1000000000"];
    for end in ends {
        let planned = place.ok_json(&["plan", "recipe.toml", "--json", "--set", &format!("train.{end}")]);
        assert!(planned["tokens"].as_u64().is_some_and(|n| n < 1000), "{end}: {planned}");
    }
    let planned = place.ok_json(&[&t5[..], &["--batch", "1048576", "--seq", "32", "--json"]].concat());
    assert!(planned["process_bytes"].as_u64() > Some(1 << 35), "{planned}");
}

#[test]
fn matrices() {
    let place = Place::new();
    place.write("x.npy", npy(3, 2, &[1.0; 6]));
    place.write("dz.npy", npy(4, 2, &[1.0; 8]));
    let estimate = |x: &str, dz: &str, more: &[&str], code: i32, needles: &[&str]| {
        fails(&place, &[&["estimate", "--json", "--x", x, "--dz", dz], more].concat(), code, needles);
    };
    estimate("x.npy", "dz.npy", &[], 2, &["expected as many rows in --dz as in --x, 3, found 4", "dz.npy"]);
    estimate("train.tsv", "x.npy", &[], 1, &["expected a NumPy .npy file", "train.tsv", "hint: "]);
    estimate("absent.npy", "x.npy", &[], 1, &["absent.npy", "No such file"]);
    estimate("x.npy", "x.npy", &["--ratio", "2"], 2, &["--ratio: expected a number in (0, 1], found 2"]);
    estimate("x.npy", "x.npy", &["--trials", "1"], 2, &["--trials", "expected a whole number from 2 to 1000000"]);
}

/// Rewrites the weights of `model/` without those whose names begin with `dropped`.
fn drop_weights(place: &Place, dropped: &str) {
    let stored = Weights::open(&place.path("model")).unwrap();
    let names: Vec<_> = stored.names().filter(|n| !n.starts_with(dropped)).map(str::to_owned).collect();
    let values = |name: &String| {
        let mut values = vec![0.0; stored.shape(name).unwrap().iter().product()];
        stored.read(name, &mut values).unwrap();
        values
    };
    let values: Vec<_> = names.iter().map(values).collect();
    let saved = names.iter().zip(&values).map(|(name, values)| Saved {
        name: name.clone(),
        shape: stored.shape(name).unwrap().to_vec(),
        data: Data::F32(values),
    });
    let bare = place.path("bare.safetensors");
    write(&bare, &saved.collect::<Vec<_>>(), &[]).unwrap();
    std::fs::rename(bare, place.path("model/model.safetensors")).unwrap();
}

#[test]
fn models_that_cannot_predict() {
    let place = Place::new();
    // the bare model, without a classifier
    drop_weights(&place, "classifier");
    let needles = &["classifier", "not trained", "in model", "hint: "];
    fails(&place, &["eval", "--model", "model", "--data", "dev.tsv"], 1, needles);
    fails(&place, &["predict", "--model", "model", "--data", "dev.tsv"], 1, needles);
}

#[test]
fn bodies_that_lack_weights() {
    let place = Place::new();
    // which pre-training leaves out as it does the classifier
    drop_weights(&place, "bert.pooler");
    place.train(&["train.steps=1", "output=no-pooler"]);
    drop_weights(&place, "bert.encoder.layer.1.output.dense.bias");
    let needles = &["the checkpoint lacks bert.encoder.layer.1.output.dense.bias", "model.init_missing = true"];
    train_fails(&place, &[], 1, needles);
    fails(&place, &["eval", "--model", "model", "--data", "dev.tsv"], 1, needles);
    place.train(&["model.init_missing=true", "train.steps=1"]);
}

#[test]
fn heads_that_training_replaces() {
    let place = Place::new();
    let mut other = config();
    other["id2label"] = json!({"1": "no", "2": "yes"});
    other["problem_type"] = json!("multi_label_classification");
    place.write("model/config.json", other.to_string());
    let needles =
        &["id2label: expected names", "problem_type: expected", "model/config.json", "this head cannot be used"];
    fails(&place, &["eval", "--model", "model", "--data", "dev.tsv"], 1, needles);
    fails(&place, &["predict", "--model", "model", "--data", "dev.tsv"], 1, needles);
    place.train(&["train.steps=1"]);
    place.ok(&["eval", "--model", "run/model", "--data", "dev.tsv"]);
    // a module that holds others counts, and is saved with the adapter
    let lora = ["train.method=lora", "train.modules_to_save=[\"classifier\", \"pooler\"]"];
    place.train(&[&lora[..], &["train.steps=1", "output=adapter"]].concat());
    place.ok(&["eval", "--model", "adapter/model", "--data", "dev.tsv"]);
    let adapter = Weights::open_file(&place.path("adapter/model/adapter_model.safetensors")).unwrap();
    assert!(adapter.shape("base_model.model.bert.pooler.dense.weight").is_some());
}

#[test]
fn evaluation_and_prediction() {
    let place = Place::new();
    let predict = |more: &[&str], code, needles: &[&str]| {
        fails(&place, &[&["predict", "--model", "model"], more].concat(), code, needles);
    };
    predict(&["--data", "absent.tsv"], 1, &["no such file or folder", "absent.tsv"]);
    predict(&["--data", "dev.tsv", "--text", "words"], 1, &["words", "dev.tsv"]);
    predict(&["--data", "dev.tsv", "--max-length", "99"], 2, &["--max-length: expected at most 32", "found 99"]);
    predict(&["--data", "dev.tsv", "--max-length", "1"], 2, &["at least 3 tokens, found 1"]);
    predict(&["--data", "dev.tsv", "--out", "absent/out.jsonl"], 1, &["cannot write", "absent/out.jsonl"]);
    let eval = ["eval", "--model", "model", "--data", "dev.tsv"];
    fails(&place, &[&eval[..], &["--task", "stsb"]].concat(), 2, &["--task stsb", "one output", "2 labels"]);
    fails(&place, &[&eval[..], &["--task", "sst3"]].concat(), 2, &["unknown task \"sst3\"", "did you mean sst2?"]);
    place.write("other.tsv", tsv(&[("good".into(), 1), ("bad".into(), 7)]));
    fails(&place, &["eval", "--model", "model", "--data", "other.tsv"], 1, &["unknown label \"7\"", "line 3"]);
    fails(&place, &["report", "absent"], 1, &["absent"]);
    fails(&place, &["quickstart", "--model", "./absent", "--data", "train.tsv"], 1, &["no such folder: ./absent"]);
    let quickstart = |data: &str| ["quickstart", "--model", "./model", "--out", "q", "--data", data].map(str::to_owned);
    place.write("rated.tsv", "text\tscore\na good film\t0.5\na bad one\t1.5\n");
    place.write("worded.tsv", format!("text\tlabel\n{}", "a good film\tup\na bad one\tdown\nso so\t\n".repeat(9)));
    for (data, needles) in [
        ("rated.tsv", &["expected classes as labels, found numbers", "rated.tsv"][..]),
        ("worded.tsv", &["worded.tsv", "the run failed", "q/exact.toml"]),
    ] {
        let args = quickstart(data);
        fails(&place, &args.each_ref().map(String::as_str), 1, needles);
        assert!(!place.path("q").exists(), "{data}: a failed first run leaves its folder");
    }
}

#[test]
fn adapters_that_do_not_fit() {
    let place = Place::new();
    let lora = |more: &[&str], code, needles: &[&str]| {
        train_fails(&place, &[&["train.method=lora"], more].concat(), code, needles);
    };
    lora(&["lora.targets=[\"querry\"]"], 2, &["lora.targets: `querry` names no linear", "hint: linears end in query,"]);
    lora(&["train.modules_to_save=[\"head\"]"], 2, &["train.modules_to_save: `head` names no module", "hint: "]);
    let mut three = config();
    three["id2label"] = json!({"0": "0", "1": "1", "2": "2"});
    place.model("three", &three);
    let unsaved = ["model.path=three", "train.modules_to_save=[\"pooler.dense\"]"];
    lora(&unsaved, 2, &["train.modules_to_save: classifier.weight is not in the checkpoint", "hint: "]);
    fails(
        &place,
        &["eval", "--model", "model", "--base", "model", "--data", "train.tsv"],
        2,
        &["--base", "hint: leave out"],
    );
    fails(&place, &["merge", "--model", "model", "--out", "merged"], 2, &["expected an adapter", "in model"]);

    place.train(&["train.method=lora", "train.steps=1", "output=run"]);
    let mut wide = config();
    (wide["hidden_size"], wide["num_hidden_layers"]) = (json!(32), json!(1));
    place.model("wide", &wide);
    let eval = |base: &str, needles: &[&str]| {
        fails(&place, &["eval", "--model", "run/model", "--base", base, "--data", "train.tsv"], 1, needles);
    };
    eval("wide", &["does not fit its base model", "hint: "]);
    eval("./absent", &["no such folder: ./absent"]);
    let settings = place.text("run/model/adapter_config.json");
    place.write("run/model/adapter_config.json", settings.replace("\"r\": 8", "\"r\": 4"));
    let needles = &["does not fit its base model", "lora_A.weight: expected shape (4, 16), found (8, 16)", "hint: "];
    eval("model", needles);
    place.write("run/model/adapter_config.json", settings.replace("\"LORA\"", "\"IA3\""));
    eval("model", &["peft_type: expected \"LORA\", found \"IA3\"", "run/model/adapter_config.json"]);
    place.write("run/model/adapter_config.json", settings);
    let whole = place.read("run/model/adapter_model.safetensors");
    place.write("run/model/adapter_model.safetensors", &whole[..whole.len() - 9]);
    eval("model", &["truncated", "run/model/adapter_model.safetensors"]);
}

#[test]
fn ratios_that_a_run_cannot_choose() {
    let place = Place::new();
    let fails =
        |sets: &[&str], needles: &[&str]| train_fails(&place, &[&["keep.ratio=auto"], sets].concat(), 2, needles);
    fails(
        &[],
        &["nothing to choose: under keep.policy = \"exact\" no site draws rows", "hint: set keep.policy to lean"],
    );
    let topk =
        &["`topk` has a bias", "in encoder.layer.0.", "hint: choose keep.estimator pps, wta or crs, or a number"];
    fails(&["keep.policy=lean", "keep.estimator=topk"], topk);
    fails(&["keep.policy=lean", "keep.sites.'*.output.dense'.estimator=exact"], &["`exact` keeps all rows"]);
    fails(&["keep.policy=lean", "train.batch=1"], &["compares the sequences of a step", "hint: set train.batch"]);
    fails(
        &["keep.policy=paper", "keep.bytes=10KiB"],
        &["keep.bytes: expected at least ", "found 10240", "hint: a smaller batch"],
    );
}

#[test]
fn modules_that_are_the_whole_model() {
    let place = Place::new();
    for method in ["lora", "bitfit"] {
        let method = format!("train.method={method}");
        for whole in ["bert", "*"] {
            let modules = format!("train.modules_to_save=['{whole}']");
            let told =
                [&format!("train.modules_to_save: `{whole}` is the whole model"), "hint: name modules within it"];
            train_fails(&place, &[&method, &modules], 2, &told);
        }
        place.ok(&[
            "plan",
            "recipe.toml",
            "--set",
            &method,
            "--set",
            "train.modules_to_save=['classifier','bert.pooler']",
        ]);
    }
}
