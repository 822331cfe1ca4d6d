//! The commands end to end, on a tiny model: what they write, what they print, and that their figures agree.

mod common;

use common::{Place, finish, npy, random, rows, tsv};
use serde_json::{Value, json};

#[test]
fn train_writes_the_run_folder_and_the_others_read_it() {
    let place = Place::new();
    place.write("train.tsv", tsv(&rows(160, 1, None)));
    let sets = ["train.save_every=4", "train.keep_checkpoints=2", "train.epochs=8", "optim.lr=3e-3"];
    let summary = place.train(&sets);
    let layout = ["checkpoints", "lock", "metrics.jsonl", "model", "recipe.toml", "report.html", "summary.json"];
    assert_eq!(place.names("run"), layout);
    assert_eq!(place.names("run/checkpoints"), ["step-156", "step-160"]);
    assert_eq!(place.names("run/checkpoints/step-160"), ["model.safetensors", "optimizer.safetensors", "state.json"]);
    assert_eq!(place.names("run/model"), ["colrow.json", "config.json", "model.safetensors", "tokenizer.json"]);
    let mut whole = place.json("run/summary.json");
    for page_filling in ["ledger", "timeline"] {
        assert!(
            whole
                .as_object_mut()
                .unwrap()
                .remove(page_filling)
                .is_some_and(|list| !list.as_array().unwrap().is_empty())
        );
    }
    assert_eq!(whole, summary);
    assert!(place.text("run/recipe.toml").contains("save_every = 4"));
    assert!(place.text("run/report.html").contains("</html>"));

    let metrics = place.metrics("run");
    let steps = |kind: &str| -> Vec<u64> {
        metrics.iter().filter(|m| m["kind"] == kind).map(|m| m["step"].as_u64().unwrap()).collect()
    };
    assert_eq!(steps("train"), (1..=160).collect::<Vec<_>>());
    assert_eq!(steps("eval"), [20, 40, 60, 80, 100, 120, 140, 160]);
    assert_eq!((&summary["steps"], &summary["epochs"], &summary["examples"]), (&json!(160), &json!(8.0), &json!(160)));
    let best = summary["best"]["value"].as_f64().unwrap();
    assert!(best > 0.8, "two classes of plain words are learned: {best}");

    let eval = place.ok_json(&["eval", "--model", "run/model", "--data", "dev.tsv", "--json"]);
    let keys: Vec<_> = eval.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["accuracy", "f1", "loss", "positive", "macro_f1", "classes", "confusion", "examples"]);
    assert_eq!(eval["accuracy"].as_f64().unwrap(), best);
    let logged = metrics.iter().find(|m| m["kind"] == "eval" && m["step"] == summary["best"]["step"]).unwrap();
    let (ours, theirs) = (eval["loss"].as_f64().unwrap(), logged["loss"].as_f64().unwrap());
    assert!((ours - theirs).abs() < 1e-6, "{ours} {theirs}");

    // labels are not needed, and the order is that of the file
    let texts: String = place.text("dev.tsv").lines().map(|l| format!("{}\n", l.split('\t').next().unwrap())).collect();
    place.write("texts.tsv", texts);
    let out = place.ok(&["predict", "--model", "run/model", "--data", "texts.tsv"]);
    let lines: Vec<Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(out.starts_with("{\"index\":0,\"logits\":["), "{out}");
    let truth = rows(12, 2, None);
    let mut right = 0;
    for (i, line) in lines.iter().enumerate() {
        let logits: Vec<f64> = line["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        assert_eq!((line["index"].as_u64(), logits.len()), (Some(i as u64), 2));
        assert_eq!(line["label"], if logits[1] > logits[0] { "1" } else { "0" });
        right += usize::from(line["label"] == ["0", "1"][truth[i].1]);
    }
    assert_eq!((lines.len(), right as f64 / 12.0), (12, best));
    place.ok(&["predict", "--model", "run/model", "--data", "texts.tsv", "--out", "out.jsonl"]);
    assert_eq!(place.text("out.jsonl"), out);

    // without --json: text
    let out = place.ok(&["report", "run", "--out", "page.html"]);
    assert_eq!(out, "page.html\n");
    let out = place.ok(&["eval", "--model", "run/model", "--data", "dev.tsv"]);
    assert!(out.contains("accuracy") && serde_json::from_str::<Value>(&out).is_err(), "{out}");
}

#[test]
fn the_plan_is_what_the_run_needs() {
    let place = Place::new();
    place.write("train.tsv", tsv(&rows(40, 1, Some(9))));
    for (i, set) in ["keep.policy='exact'", "keep.policy='paper'", "keep.norms='current'"].into_iter().enumerate() {
        let output = format!("output='runs/{i}'");
        let sets = [set, &output, "train.epochs=1", "train.accumulate=2", "keep.ratio=0.5"];
        let mut args = vec!["plan", "recipe.toml", "--json"];
        args.extend(sets.iter().flat_map(|s| ["--set", s]));
        let plan = place.ok_json(&args);
        let run = place.train(&sets);
        for key in ["kept_bytes", "peak_bytes", "peak_bytes_by_class"] {
            assert_eq!(plan[key], run[key], "{set}: {key}");
        }
        let sum: u64 = plan["peak_bytes_by_class"].as_object().unwrap().values().map(|v| v.as_u64().unwrap()).sum();
        assert_eq!(plan["peak_bytes"], sum);
        let sites = plan["sites"].as_array().unwrap();
        let kept: u64 = sites.iter().map(|s| s["kept_bytes"].as_u64().unwrap()).sum();
        assert_eq!(plan["kept_bytes"], kept, "{set}");
        let policy = |name: &str| sites.iter().find(|s| s["name"] == name).unwrap()["policy"].as_str().unwrap();
        let sampled = if i == 1 { "pps@0.5 (cached norms)" } else { "exact" };
        assert_eq!(policy("encoder.layer.0.intermediate.dense"), sampled);
        assert_eq!(policy("encoder.layer.0.attention.self.qkv"), "exact");
        // one row a sequence
        assert_eq!(policy("encoder.layer.1.intermediate.dense"), "exact");
    }
    let text = place.ok(&["plan", "recipe.toml"]);
    assert!(text.contains("encoder.layer.0.output.dense") && text.contains("largest step"), "{text}");
    assert_eq!(place.names("run"), [""; 0], "a plan writes nothing");
}

#[test]
fn exceptions_by_site() {
    let place = Place::new();
    let sets = [
        "keep.policy=paper",
        "keep.sites.'encoder.layer.1.*'.keep=exact",
        "keep.sites.'encoder.layer.0.output.dense'.ratio=0.1",
        "keep.sites.'encoder.layer.0.output.dense'.estimator=wta",
        "train.steps=2",
    ];
    let summary = place.train(&sets);
    let policy: Vec<_> = summary["policy"].as_array().unwrap().iter().map(|p| (&p["site"], &p["keep"])).collect();
    let keep = |site: &str| policy.iter().find(|(name, _)| *name == site).unwrap().1.as_str().unwrap();
    assert_eq!(keep("encoder.layer.1.output.dense"), "exact");
    assert_eq!(keep("encoder.layer.0.output.dense"), "wta@0.1 (cached norms)");
    assert_eq!(keep("encoder.layer.0.intermediate.dense"), "pps@0.3 (cached norms)");
}

#[test]
fn bench_measures_what_it_planned() {
    let place = Place::new();
    for more in [
        &["--keep", "exact"][..],
        &["--keep", "paper"],
        &["--keep", "paper", "--lengths", "uniform"],
        &["--optimizer-states", "8bit", "--update", "in-backward"],
        &["--precision", "bf16"],
    ] {
        let args = ["bench", "--model-config", "model/config.json", "--batch", "4", "--seq", "32", "--json"];
        let result = place.ok_json(&[&args[..], more].concat());
        for key in ["step_seconds_min", "step_seconds_median", "optimizer_seconds_min", "optimizer_seconds_median"] {
            assert!(result[key].as_f64().unwrap() > 0.0, "{key}");
        }
        for key in ["tokens", "kept_bytes", "peak_bytes", "peak_rss_bytes"] {
            assert!(result[key].as_u64().unwrap() > 0, "{key}");
        }
        assert!(result["peak_bytes_by_class"]["weights"].as_u64().unwrap() > 0);
        assert_eq!(result["kept_bytes"], result["planned_kept_bytes"], "{more:?}");
        assert_eq!(result["peak_bytes"], result["planned_peak_bytes"], "{more:?}");
        assert!(result["optimizer_seconds_min"].as_f64() < result["step_seconds_min"].as_f64());
        let update = if more.contains(&"in-backward") { ["8bit", "in-backward"] } else { ["f32", "after-backward"] };
        assert_eq!([&result["optimizer_states"], &result["update"]], update);
        assert_eq!(result["precision"], if more.contains(&"bf16") { "bf16" } else { "f32" });
    }
    let text = place.ok(&["bench", "--model-config", "model/config.json", "--batch", "2", "--seq", "8"]);
    assert!(text.contains("16 tokens") && text.contains("planned"), "{text}");
    place.write("lengths", "5 32\n1\n");
    let args = ["bench", "--model-config", "model/config.json", "--lengths-file", "lengths", "--json"];
    let result = place.ok_json(&[&args[..], &["--method", "lora"]].concat());
    assert_eq!(result["tokens"], 38);
    assert_eq!(result["kept_bytes"], result["planned_kept_bytes"]);
    let count = |key: &str| result[key].as_u64().unwrap();
    let full = place.ok_json(&args);
    assert_eq!(full["frozen_parameters"], 0);
    let (adapters, classifier) = (2 * 3 * 2 * 8 * 16, 2 * 17);
    assert_eq!(count("trainable_parameters"), adapters + classifier);
    assert_eq!(count("frozen_parameters"), full["trainable_parameters"].as_u64().unwrap() - classifier);
}

#[test]
fn estimate_finds_bias_where_there_is_one() {
    let place = Place::new();
    let mut seed = 5;
    let mut matrix = |cols: usize| -> Vec<f64> {
        let row = |i: usize| (0..cols).map(move |_| i).collect::<Vec<_>>();
        // sizes fall off as 1/√i, so that rows differ in what they bring
        let value = |i: usize| (random(&mut seed, 1000) as f64 / 500.0 - 0.8) / (1.0 + i as f64).sqrt();
        (0..40).flat_map(row).map(value).collect()
    };
    place.write("x.npy", npy(40, 3, &matrix(3)));
    place.write("dz.npy", npy(40, 2, &matrix(2)));
    let args = ["estimate", "--x", "x.npy", "--dz", "dz.npy", "--trials", "2000", "--seed", "3", "--json"];
    let estimate = |ratio: &str| {
        let result = place.ok_json(&[&args[..], &["--ratio", ratio]].concat());
        let rows = result["estimators"].as_array().unwrap().clone();
        let names: Vec<_> = rows.iter().map(|r| r["estimator"].as_str().unwrap()).collect();
        assert_eq!(names, ["exact", "topk", "crs", "wta", "pps"]);
        rows.into_iter().map(|r| ["slope", "slope_se", "bias", "rmse"].map(|k| r[k].as_f64().unwrap())).collect()
    };
    let rows: Vec<[f64; 4]> = estimate("0.3");
    for [slope, se, bias, rmse] in &rows[2..] {
        assert!((slope - 1.0).abs() < 4.0 * se && *se > 0.0, "slope {slope} ± {se}");
        assert!(*bias < 5.0 * rmse / 2000_f64.sqrt(), "bias {bias}, rmse {rmse}");
    }
    let [_, _, bias, rmse] = rows[1];
    assert!(bias > 0.05 && (bias - rmse).abs() < 1e-9, "the same rows every time: {bias} {rmse}");
    assert_eq!(rows[0], [1.0, 0.0, 0.0, 0.0]);
    for row in estimate("1") {
        let close = |x: f64, to: f64| (x - to).abs() < 1e-12;
        assert!(close(row[0], 1.0) && row[1..].iter().all(|&x| close(x, 0.0)), "{row:?}");
    }
    let text = place.ok(&args[..args.len() - 1]);
    assert!(text.starts_with("12 of 40 rows, 2000 draws\n"), "{text}");
}

#[test]
fn regression() {
    let place = Place::new();
    let scored = |n, seed| -> String {
        let score = |(text, label): (String, usize)| format!("{text}\t{}\n", label as f64 * 2.5 + 0.25);
        "sentence\tlabel\n".to_owned() + &rows(n, seed, None).into_iter().map(score).collect::<String>()
    };
    place.write("train.tsv", scored(160, 1));
    place.write("dev.tsv", scored(12, 2));
    let summary = place.train(&["task=regress", "train.epochs=4", "optim.lr=3e-3"]);
    assert_eq!(summary["metric"], "spearman");
    assert!(summary["final"]["pearson"].as_f64().unwrap() > 0.5, "{}", summary["final"]);
    let config = place.json("run/model/config.json");
    assert_eq!(config["problem_type"], "regression");
    let args = ["eval", "--model", "run/model", "--data", "dev.tsv", "--task", "regress", "--json"];
    assert_eq!(place.ok_json(&args)["spearman"], summary["best"]["value"]);
    let out = place.ok(&["predict", "--model", "run/model", "--data", "dev.tsv"]);
    let first: Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
    assert_eq!(first["label"], first["logits"][0]);
}

#[test]
fn labels_that_are_words_come_back() {
    let place = Place::new();
    let line = |(text, label): &(String, usize)| {
        let mood = ["sour", "sweet"][*label];
        json!({"review": text, "mood": mood, "id": 7}).to_string() + "\n"
    };
    place.write("data.jsonl", rows(60, 3, None).iter().map(line).collect::<String>());
    place.write("recipe.toml", common::RECIPE.replace("dev = \"dev.tsv\"\n", "").replace("train.tsv", "data.jsonl"));
    place.train(&["data.text=review", "data.label=mood", "data.dev_share=0.2"]);
    let config = place.json("run/model/config.json");
    assert_eq!(config["id2label"], json!({"0": "sour", "1": "sweet"}));
    assert_eq!(config["label2id"], json!({"sour": 0, "sweet": 1}));
    let columns = ["--data", "data.jsonl", "--text", "review"];
    let out = place.ok(&[&["predict", "--model", "run/model"], &columns[..]].concat());
    assert_eq!(out.lines().count(), 60);
    assert!(out.contains("\"label\":\"sour\"") && out.contains("\"label\":\"sweet\""), "{out}");
    let eval = [&["eval", "--model", "run/model", "--json", "--label", "mood"], &columns[..]].concat();
    assert_eq!(place.ok_json(&eval)["examples"], 60);
}

/// Outputs in another order than the data's labels: what is known by name goes to the output of that name.
#[test]
fn labels_reach_the_output_of_their_name() {
    let place = Place::new();
    let write = |name: &str, words: [&str; 2], n, seed| {
        let line = |(text, label): &(String, usize)| format!("{text}\t{}\n", words[*label]);
        place.write(name, "sentence\tlabel\n".to_owned() + &rows(n, seed, None).iter().map(line).collect::<String>());
    };
    write("train.tsv", ["sour", "sweet"], 40, 1);
    write("dev.tsv", ["sour", "sweet"], 12, 2);
    place.train(&["train.epochs=40"]);
    let accuracy = |args: &[&str]| {
        let args = [&["eval", "--model", "run/model", "--json", "--data", "dev.tsv"], args].concat();
        place.ok_json(&args)["accuracy"].as_f64().unwrap()
    };
    let learned = accuracy(&[]);
    assert!(learned > 0.7, "{learned}");

    // the same model, whose first output is now called by the name that sorts last
    let rename = |names: [&str; 2]| {
        let mut config = place.json("run/model/config.json");
        config["id2label"] = json!({"0": names[0], "1": names[1]});
        config["label2id"] = json!({names[0]: 0, names[1]: 1});
        place.write("run/model/config.json", config.to_string());
        // as other programs leave a model
        let _ = std::fs::remove_file(place.path("run/model/colrow.json"));
    };
    rename(["sweet", "sour"]);
    write("train.tsv", ["sweet", "sour"], 40, 1);
    write("dev.tsv", ["sweet", "sour"], 12, 2);
    assert_eq!(accuracy(&[]), learned);
    let on = ["model.path=run/model", "output=on", "optim.lr=0", "train.steps=1", "train.best_metric=accuracy"];
    assert_eq!(place.train(&on)["best"]["value"], learned);
    assert_eq!(place.json("on/model/config.json")["id2label"], json!({"0": "sweet", "1": "sour"}));
    let lora = ["train.method=lora", "output=lora", "train.modules_to_save=[\"classifier\"]"];
    assert_eq!(place.train(&[&on[..], &lora].concat())["best"]["value"], learned);

    // a GLUE task's integers mean its classes
    rename(["POSITIVE", "NEGATIVE"]);
    write("dev.tsv", ["1", "0"], 12, 2);
    assert_eq!(accuracy(&["--task", "sst2"]), learned);
    assert!(
        (accuracy(&["--task", "classify"]) + learned - 1.0).abs() < 1e-6,
        "an index of no task is the output's number"
    );
}

#[test]
fn accumulation_is_a_larger_batch() {
    let place = Place::new();
    let sets = ["model.dropout=0", "train.epochs=1", "data.limit=32", "train.eval_every='epoch'"];
    place.train(&[&sets[..], &["train.batch=16", "output=whole"]].concat());
    place.train(&[&sets[..], &["train.batch=4", "train.accumulate=4", "output=parts"]].concat());
    let (whole, parts) = (place.metrics("whole"), place.metrics("parts"));
    assert_eq!((whole.len(), parts.len()), (3, 3));
    for (a, b) in whole.iter().zip(&parts).filter(|(a, _)| a["kind"] == "train") {
        for key in ["loss", "grad_norm"] {
            let (a, b) = (a[key].as_f64().unwrap(), b[key].as_f64().unwrap());
            assert!((a - b).abs() < 1e-5 * a.abs().max(1.0), "{key}: {a} {b}");
        }
        assert!(a["kept_bytes"].as_u64() > b["kept_bytes"].as_u64());
    }
}

#[test]
fn batches_by_tokens() {
    let place = Place::new();
    place.write("recipe.toml", common::RECIPE.replace("batch = 8", "batch_tokens = 50"));
    place.train(&[]);
    let tokens = |m: &Value| m["tokens"].as_u64();
    let tokens: Vec<_> = place.metrics("run").iter().filter_map(tokens).collect();
    assert!(tokens.len() > 10 && tokens.iter().all(|&n| n <= 50), "{tokens:?}");
}

#[test]
fn patience_ends_a_run_that_does_not_improve() {
    let place = Place::new();
    let args = ["--set", "optim.lr=0", "--set", "train.epochs=50", "--set", "train.patience=2"];
    let ran = place.run(&[&["train", "recipe.toml", "--json"], &args[..]].concat());
    let summary: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&summary["steps"], &summary["best"]["step"]), (&json!(15), &json!(5)));
    assert_eq!(summary["stopped_early"], true);
    let why = format!(
        "no better than {:.4}, of step 5, in 2 evaluations (train.patience)",
        summary["best"]["value"].as_f64().unwrap()
    );
    assert!(ran.err.contains(&format!("run: stopping early: accuracy has been {why}")), "{}", ran.err);
    // and it has ended for good
    let again = place.ok_json(&[&["train", "recipe.toml", "--resume", "--json"], &args[..]].concat());
    assert_eq!(again, summary);
    // also if it was killed before its summary was written
    let ledger = place.json("run/summary.json")["ledger"].clone();
    std::fs::remove_file(place.path("run/summary.json")).unwrap();
    let metrics = place.text("run/metrics.jsonl");
    let again = place.ok_json(&[&["train", "recipe.toml", "--resume", "--json"], &args[..]].concat());
    for key in ["steps", "best", "final", "kept_bytes", "peak_bytes", "policy"] {
        assert_eq!(again[key], summary[key], "{key}");
    }
    assert_eq!(place.json("run/summary.json")["ledger"], ledger);
    assert_eq!(place.text("run/metrics.jsonl"), metrics);
}

#[test]
fn frozen_weights_stay() {
    let place = Place::new();
    let free = place.train(&["train.epochs=1", "output=free"]);
    let frozen = place.train(&["train.epochs=1", "train.freeze=['bert.embeddings.*', 'bert.encoder.*']"]);
    assert!(frozen["kept_bytes"].as_u64() < free["kept_bytes"].as_u64());
    assert!(frozen["peak_bytes_by_class"]["optimizer"].as_u64() < free["peak_bytes_by_class"]["optimizer"].as_u64());
    let read = |folder: &str, name: &str| {
        let weights = colrow_models::checkpoint::weights::Weights::open(&place.path(folder)).unwrap();
        let mut values = vec![0.0; weights.shape(name).unwrap().iter().product()];
        weights.read(name, &mut values).unwrap();
        values
    };
    for (name, stays) in [("bert.encoder.layer.1.output.dense.weight", true), ("bert.pooler.dense.weight", false)] {
        assert_eq!(read("model", name) == read("run/model", name), stays, "{name}");
        assert_ne!(read("model", name), read("free/model", name));
    }
}

#[test]
fn quickstart_compares_four_runs() {
    let place = Place::new();
    // the columns' names say nothing to a task
    place.write("mine.tsv", place.text("train.tsv").replace("sentence\tlabel\n", "Review Text\tmood\n"));
    let args = ["quickstart", "--quick", "--model", "./model", "--data", "mine.tsv", "--out", "out/here", "--json"];
    let table = place.ok_json(&args);
    let runs = table["runs"].as_array().unwrap();
    let names: Vec<_> = runs.iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["exact", "wta@0.3", "pps@0.3", "lean@0.3"]);
    for run in runs {
        let keys: Vec<_> = run.as_object().unwrap().keys().collect();
        let first = ["name", "accuracy", "kept_bytes", "peak_bytes", "peak_rss_bytes", "step_seconds"];
        assert_eq!(keys[..6], first);
        assert!(run["parameter_bytes"].as_u64() < run["peak_bytes"].as_u64());
        assert!((0.0..=1.0).contains(&run["accuracy"].as_f64().unwrap()));
        assert!(["kept_bytes", "peak_bytes", "peak_rss_bytes"].iter().all(|k| run[k].as_u64().unwrap() > 0));
        assert!(run["step_seconds"].as_f64().unwrap() > 0.0);
    }
    assert!(runs[1]["kept_bytes"].as_u64() < runs[0]["kept_bytes"].as_u64());
    // by definition exact's batch, in which leaner variants have room for more
    let batches: Vec<_> = runs.iter().map(|run| run["batch_in_same_memory"].as_u64().unwrap()).collect();
    assert_eq!(batches[0], 32);
    assert!(batches[1] > 32 && batches[3] > batches[1], "{batches:?}");
    let notes: Vec<_> = table["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap()).collect();
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(notes[0].contains("teach little") && notes[1].contains("16 bytes a weight"), "{notes:?}");
    assert!(notes[2].contains(&format!("lean@0.3 takes {}", batches[3])), "{notes:?}");
    assert!(place.text("out/here/report.html").contains("wta@0.3"));
    // a second time it would go over the first one's runs
    let ran = place.run(&args);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(ran.err.contains("exists already") && ran.err.contains("hint: choose another folder"), "{}", ran.err);
}

#[test]
fn products_use_no_more_instructions_than_they_may() {
    let place = Place::new();
    let run = |instructions: &str| {
        let output = format!("output='{instructions}'");
        let args = ["train", "recipe.toml", "--set", &output, "--set", "train.steps=3"];
        finish(place.command(&args).env("COLROW_INSTRUCTIONS", instructions))
    };
    for instructions in ["portable", "avx2", "avx512"] {
        let ran = run(instructions);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
    }
    let losses =
        |run: &str| -> Vec<f64> { place.metrics(run).iter().filter_map(|line| line["loss"].as_f64()).collect() };
    let portable = losses("portable");
    assert!(!portable.is_empty());
    for other in ["avx2", "avx512"] {
        let all = losses(other);
        assert!(portable.iter().zip(&all).all(|(a, b)| (a - b).abs() < 1e-4), "{portable:?} {all:?}");
    }
    // the last bits are another kernel's from there on
    for (instructions, steps, warns) in [("portable", "train.steps=5", false), ("", "train.steps=7", true)] {
        let resume = ["train", "recipe.toml", "--set", "output='portable'", "--set", steps, "--resume"];
        let ran = finish(place.command(&resume).env("COLROW_INSTRUCTIONS", instructions));
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        // on a machine that has no more there is nothing to tell
        let warns = warns && colrow_tensor::instructions() != "portable";
        assert_eq!(ran.err.contains("the run was begun with products on portable"), warns, "{}", ran.err);
    }
    let ran = run("sse");
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.err.contains("COLROW_INSTRUCTIONS: expected one of portable, avx2, avx512, found \"sse\""),
        "{}",
        ran.err
    );
}

#[test]
fn completions_and_help() {
    let place = Place::new();
    assert!(place.ok(&["completions", "bash"]).contains("_colrow()"));
    let help = place.ok(&["--help"]);
    for command in [
        "quickstart",
        "train",
        "eval",
        "predict",
        "merge",
        "import",
        "export",
        "plan",
        "bench",
        "estimate",
        "report",
        "paper-memory",
    ] {
        assert!(help.contains(command), "{command}");
        assert!(place.ok(&[command, "--help"]).contains("Usage: colrow"), "{command}");
    }
    assert_eq!(place.ok(&["--version"]).trim(), format!("colrow {}", env!("CARGO_PKG_VERSION")));
}

/// Every method learns what it says, and the adapter's folder, the merged model and the run agree.
#[test]
fn adapters_learn_and_merge() {
    let place = Place::new();
    let targets = "lora.targets=[\"query\", \"key\", \"value\", \"layer.*.dense\"]";
    let sets = ["train.epochs=40", targets, "lora.rank=4", "lora.dropout=0.1", "optim.warmup=0.1"];
    let mut kept = Vec::new();
    for method in ["lora", "lora-fa", "bitfit", "full"] {
        let (output, set) = (format!("output={method}"), format!("train.method={method}"));
        // the whole model learns at a rate that would blow it up
        let lr = if method == "full" { "optim.lr=1e-3" } else { "optim.lr=2e-2" };
        let summary = place.train(&[&sets[..], &[&output, &set, lr]].concat());
        kept.push(summary["kept_bytes"].as_u64().unwrap());
        let names = place.names(&format!("{method}/model"));
        assert_eq!(names.iter().any(|n| n == "adapter_model.safetensors"), method.starts_with("lora"), "{names:?}");
        let metrics = place.metrics(method);
        let losses: Vec<f64> =
            metrics.iter().filter(|m| m["kind"] == "train").filter_map(|m| m["loss"].as_f64()).collect();
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let third = losses.len() / 3;
        assert!(mean(&losses[losses.len() - third..]) < mean(&losses[..third]), "{method}: {losses:?}");
    }
    let [lora, fa, bitfit, full] = kept[..] else { panic!("four runs") };
    // adapters on every linear keep what the linears would keep, and their hidden rows beside it
    assert!(fa < lora && fa < full && full < lora && bitfit < full, "{kept:?}");

    let logits = |args: &[&str]| -> Vec<f64> {
        let out = place.ok(&[&["predict", "--data", "dev.tsv"], args].concat());
        let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["logits"].clone();
        out.lines().map(line).flat_map(|l| l.as_array().unwrap().clone()).map(|x| x.as_f64().unwrap()).collect()
    };
    place.ok(&["merge", "--model", "lora/model", "--out", "merged"]);
    let (adapter, merged) = (logits(&["--model", "lora/model"]), logits(&["--model", "merged"]));
    assert!(
        adapter.iter().zip(&merged).all(|(a, b)| (a - b).abs() < 1e-4 * a.abs().max(1.0)),
        "{adapter:?} {merged:?}"
    );
    assert_eq!(logits(&["--model", "lora/model", "--base", "model"]), adapter);
}
