//! A saved model is used as its run was told: what its folder says, what flags say instead, and how evaluations and predictions are written.

mod common;

use common::{Place, rows, t5_config, tsv};
use serde_json::{Value, json};

/// What `eval` says of the run's development data is what the run said at its best step, to the last digit.
#[track_caller]
fn evaluates_as_in_training(place: &Place, run: &str, sets: &[&str]) -> Value {
    let output = format!("output='{run}'");
    let summary = place.train(&[sets, &[&output]].concat());
    let lines = place.metrics(run);
    let best = lines.iter().find(|m| m["kind"] == "eval" && m["step"] == summary["best"]["step"]).unwrap();
    let eval = place.ok_json(&["eval", "--model", &format!("{run}/model"), "--data", "dev.tsv", "--json"]);
    for (name, value) in best["metrics"].as_object().unwrap() {
        assert_eq!(&eval[name], value, "{sets:?}: {name}");
    }
    for key in ["loss", "positive", "macro_f1", "classes", "confusion"] {
        assert_eq!(eval[key], best[key], "{sets:?}: {key}");
    }
    eval
}

#[test]
fn eval_gives_the_run_s_metric_to_the_last_digit() {
    let place = Place::new();
    place.write("dev.tsv", tsv(&rows(41, 2, None)));
    for (i, sets) in [
        &["data.max_length=6"][..],
        &["train.batch_tokens=70"],
        &["train.precision='bf16'", "keep.policy='lean'"],
        &["train.method='lora'", "train.batch=3"],
        &["task='sst2'"],
        &["data.positive='0'", "train.best_metric='f1'"],
    ]
    .into_iter()
    .enumerate()
    {
        let eval = evaluates_as_in_training(&place, &format!("run{i}"), sets);
        assert_eq!(eval["examples"], 41);
    }
    // another length, and another positive class, are another result
    let eval = |run: &str, more: &[&str]| {
        let model = format!("{run}/model");
        place.ok_json(&[&["eval", "--model", &model, "--data", "dev.tsv", "--json"][..], more].concat())
    };
    assert_ne!(eval("run0", &[])["loss"], eval("run0", &["--max-length", "32"])["loss"]);
    let (zero, one) = (eval("run5", &[]), eval("run5", &["--positive", "1"]));
    assert_eq!((&zero["positive"], &one["positive"]), (&json!("0"), &json!("1")));
    for (eval, class) in [(&zero, 0), (&one, 1)] {
        assert_eq!(eval["f1"], eval["classes"][class]["f1"]);
    }
    let ran = place.run(&["eval", "--model", "run5/model", "--data", "dev.tsv", "--positive", "2"]);
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    assert!(ran.err.contains("unknown label \"2\"\n  in --positive"), "{}", ran.err);
}

#[test]
fn a_t5_is_asked_as_it_was_trained() {
    let place = Place::new();
    place.t5("t5", &t5_config());
    place.write("dev.tsv", tsv(&rows(64, 1, None)));
    place.write("recipe.toml", place.text("recipe.toml").replace("./model", "./t5").replace("classify", "sst2"));
    place.write("train.tsv", place.text("dev.tsv"));
    let sets = ["train.epochs=40", "optim.lr=1e-2", "train.batch=16", "data.max_target_length=4"];
    let eval = evaluates_as_in_training(&place, "run", &sets);
    assert_eq!(eval["accuracy"], 1.0);
    assert_eq!(place.json("run/model/colrow.json")["max_target_length"], 4);

    let out = place.ok(&["predict", "--model", "run/model", "--data", "dev.tsv"]);
    for (line, (_, label)) in out.lines().zip(rows(64, 1, None)) {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!((&line["label"], &line["is_label"]), (&json!(["negative", "positive"][label]), &json!(true)));
        assert_eq!((&line["logits"], line.get("probabilities")), (&json!([]), None));
    }
    // a task in which it was not asked, and a folder that does not say: as before
    let accuracy = |more: &[&str]| {
        let args = ["eval", "--model", "run/model", "--data", "dev.tsv", "--json"];
        place.ok_json(&[&args[..], more].concat())["accuracy"].as_f64().unwrap()
    };
    assert_eq!(accuracy(&["--task", "classify"]), 0.0);
    std::fs::remove_file(place.path("run/model/colrow.json")).unwrap();
    assert_eq!((accuracy(&[]), accuracy(&["--task", "sst2"])), (0.0, 1.0));
    // one token is no room for an answer and its end
    let ran = place.run(&["eval", "--model", "run/model", "--data", "dev.tsv", "--max-target-length", "1"]);
    assert_eq!(ran.code, Some(2), "{}", ran.err);
}

/// Columns and labels of the training data are found again, and an adapter's go with it into the merged model.
#[test]
fn columns_and_labels_go_with_the_model() {
    let place = Place::new();
    let csv = |n, seed| {
        let row = |(text, label): (String, usize)| {
            format!("{},{text}\n", ["sad", "happy", "so"][label + usize::from(text.len() % 3 == 0)])
        };
        "mood,review\n".to_owned() + &rows(n, seed, None).into_iter().map(row).collect::<String>()
    };
    place.write("train.csv", csv(40, 1));
    place.write("dev.csv", csv(12, 2));
    let data = ["data.train='train.csv'", "data.dev='dev.csv'", "data.text='review'", "data.label='mood'"];
    for method in ["full", "lora"] {
        let more =
            [format!("train.method='{method}'"), format!("output='{method}'"), "train.best_metric='macro_f1'".into()];
        let summary = place.train(&[&data[..], &more.each_ref().map(String::as_str)].concat());
        assert_eq!((&summary["metric"], &summary["positive"]), (&json!("macro_f1"), &Value::Null));
        assert_eq!(summary["confusion"].as_array().unwrap().len(), 3);
        let model = format!("{method}/model");
        let told = place.json(&format!("{model}/colrow.json"));
        assert_eq!(told["columns"], json!({"text": "review", "label": "mood"}));
        assert_eq!(told["labels"], json!(["happy", "sad", "so"]));
        let eval = place.ok_json(&["eval", "--model", &model, "--data", "dev.csv", "--json"]);
        assert_eq!(eval["macro_f1"], summary["best"]["value"]);
        // the usual names are found too
        place.write("usual.csv", place.text("dev.csv").replacen("mood,review", "label,text", 1));
        assert_eq!(place.ok_json(&["eval", "--model", &model, "--data", "usual.csv", "--json"]), eval);
    }
    assert!(!place.path("lora/model/config.json").exists(), "transformers takes such a folder for a whole model's");
    assert_eq!(place.names("full/model"), ["colrow.json", "config.json", "model.safetensors", "tokenizer.json"]);
    place.ok(&["merge", "--model", "lora/model", "--out", "merged"]);
    assert_eq!(place.text("merged/colrow.json"), place.text("lora/model/colrow.json"));
    let labels = json!({"0": "happy", "1": "sad", "2": "so"});
    assert_eq!(place.json("merged/config.json")["id2label"], labels);

    // adapters of older versions have their labels in a config.json
    let predict = |model: &str| place.ok(&["predict", "--model", model, "--data", "dev.csv", "--text", "review"]);
    let (adapter, merged) = (predict("lora/model"), predict("merged"));
    std::fs::remove_file(place.path("lora/model/colrow.json")).unwrap();
    let names = |out: &str| out.matches("\"label\":\"LABEL_").count();
    assert_eq!((names(&adapter), names(&merged), names(&predict("lora/model"))), (0, 0, 12));
    std::fs::copy(place.path("merged/config.json"), place.path("lora/model/config.json")).unwrap();
    assert_eq!(names(&predict("lora/model")), 0);
}

#[test]
fn a_bad_file_is_an_error_that_names_the_key() {
    let place = Place::new();
    place.train(&["train.steps=1"]);
    let told = place.json("run/model/colrow.json");
    for (key, value, needle) in [
        ("task", json!("clasify"), "task: unknown task"),
        ("max_length", json!(33), "max_length: expected at most 32"),
        ("labels", json!(["0", "1", "2"]), "labels: expected 2, as many as the model has outputs, found 3"),
        ("labels", json!(["1", "0"]), "labels: expected the names of config.json"),
        ("precison", json!("f32"), "precison: unknown key"),
    ] {
        let mut bad = told.clone();
        bad[key] = value;
        place.write("run/model/colrow.json", bad.to_string());
        for command in ["eval", "predict"] {
            let ran = place.run(&[command, "--model", "run/model", "--data", "dev.tsv"]);
            assert_eq!(ran.code, Some(1), "{}", ran.err);
            assert!(ran.err.contains(needle) && ran.err.contains("colrow.json"), "{needle:?}: {}", ran.err);
        }
    }
}

#[test]
fn predictions_as_tables_and_with_texts() {
    let place = Place::new();
    place.train(&["train.steps=1"]);
    place.write("texts.csv", "text\n\"a \"\"good\"\", film\"\nbad\n");
    let predict =
        |more: &[&str]| place.ok(&[&["predict", "--model", "run/model", "--data", "texts.csv"][..], more].concat());
    let lines: Vec<Value> = predict(&["--with-text"]).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((&lines[0]["text"], lines[0].get("pair")), (&json!("a \"good\", film"), None));
    let numbers = |line: &Value, key: &str| -> Vec<f64> {
        line[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    for line in &lines {
        let (p, logits) = (numbers(line, "probabilities"), numbers(line, "logits"));
        assert!((p[0] + p[1] - 1.0).abs() < 1e-6, "{p:?}");
        assert!(((p[1] / p[0]).ln() - (logits[1] - logits[0])).abs() < 1e-5, "{p:?} {logits:?}");
    }
    let plain: Vec<Value> = predict(&[]).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let keys: Vec<_> = plain[0].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["index", "logits", "label", "probabilities", "row"]);

    predict(&["--with-text", "--out", "out.csv"]);
    let csv = place.text("out.csv");
    let mut table = csv.lines();
    assert_eq!(table.next(), Some("index,row,label,probability.0,probability.1,logit.0,logit.1,text,pair"));
    assert!(table.next().unwrap().ends_with(",\"a \"\"good\"\", film\","), "{csv}");
    let fields: Vec<&str> = table.next().unwrap().split(',').collect();
    assert_eq!((fields[0], fields[2], fields[7]), ("1", lines[1]["label"].as_str().unwrap(), "bad"));
    for (field, value) in
        fields[3..7].iter().zip([numbers(&lines[1], "probabilities"), numbers(&lines[1], "logits")].concat())
    {
        assert_eq!(field.parse::<f32>().unwrap(), value as f32);
    }
    predict(&["--out", "out.tsv"]);
    assert!(place.text("out.tsv").starts_with("index\trow\tlabel\tprobability.0\t"));
    // a blank row is no example, and counts as a row
    place.write("texts.jsonl", "{\"text\": \"good\"}\n{\"text\": \"bad\"}\n");
    place.write("texts.txt", "good\n\nbad\n");
    let numbers = |data: &str| -> Vec<(u64, u64)> {
        let out = place.ok(&["predict", "--model", "run/model", "--data", data]);
        let line = |l: &str| serde_json::from_str::<Value>(l).unwrap();
        let of = |l: &str| (line(l)["index"].as_u64().unwrap(), line(l)["row"].as_u64().unwrap());
        out.lines().map(of).collect()
    };
    assert_eq!(numbers("texts.jsonl"), [(0, 0), (1, 1)]);
    assert_eq!(numbers("texts.txt"), [(0, 0), (1, 2)]);
    let mut command = place.command(&["predict", "--model", "run/model", "--data", "-"]);
    let input = std::fs::File::open(place.path("texts.txt")).unwrap();
    let ran = common::finish(command.stdin(input));
    assert_eq!((ran.code, ran.out), (Some(0), place.ok(&["predict", "--model", "run/model", "--data", "texts.txt"])));
    for name in ["out.jsonl", "out.unknown"] {
        predict(&["--out", name]);
        assert_eq!(place.text(name), predict(&[]));
    }
}

/// The largest of numbers that are none would be the first label.
#[test]
fn no_label_of_numbers_that_are_none() {
    let place = Place::new();
    place.train(&["train.steps=1"]);
    let mut weights = place.read("run/model/model.safetensors");
    let header = 8 + usize::from_le_bytes(weights[..8].try_into().unwrap());
    weights[header..].fill(0xff);
    place.write("run/model/model.safetensors", weights);
    place.write("texts.txt", "good\n");
    let ran = place.run(&["predict", "--model", "run/model", "--data", "texts.txt", "--out", "out.csv"]);
    assert!(ran.code == Some(1) && ran.err.contains("expected finite logits, found NaN"), "{}", ran.err);
    assert!(!place.path("out.csv").exists());
}

/// What can be read and is seldom meant: texts that are empty, one text where a model compares two, a first line that may be a header.
#[test]
fn odd_data_is_told_once() {
    let place = Place::new();
    let row = |(i, (text, label)): (usize, &(String, usize))| format!("{text},{},{label}\n", ["the film", ""][i % 2]);
    let pairs =
        rows(40, 1, None).iter().enumerate().map(row).fold("text,pair,label\n".to_owned(), |all, row| all + &row);
    place.write("pairs.csv", &pairs);
    place.write("dev.csv", &pairs);
    let summary = place.train(&["train.steps=1", "data.train=pairs.csv", "data.dev=dev.csv"]);
    let told = |file: &str| format!("{file}: column \"pair\" is empty in 20 of 40 examples; the first is in line 3");
    let warnings = summary["warnings"].to_string();
    for file in ["pairs.csv", "dev.csv"] {
        assert_eq!(warnings.matches(&Value::from(told(file)).to_string().trim_matches('"')).count(), 1, "{warnings}");
    }
    let ran = |data: &str, input: &str| {
        place.write("input", input);
        let mut command = place.command(&["predict", "--model", "run/model", "--data", data, "--with-text"]);
        let ran = common::finish(command.stdin(std::fs::File::open(place.path("input")).unwrap()));
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        let text = |line: &str| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_owned();
        (ran.out.lines().map(text).collect::<Vec<_>>(), ran.err)
    };
    let (texts, err) = ran("-", "text, which is long\ngood\n");
    assert_eq!(texts, ["text, which is long", "good"]);
    assert_eq!(
        err.matches("was trained on pairs of texts (columns \"text\" and \"pair\"), and these are single texts")
            .count(),
        1,
        "{err}"
    );
    assert_eq!(ran("-", "text\ngood, bad\n").0, ["good, bad"]);
    let (texts, err) = ran("pairs.csv", "");
    assert_eq!(
        (texts.len(), err.matches(&told("pairs.csv")).count(), err.contains("single texts")),
        (40, 1, false),
        "{err}"
    );
}

#[test]
fn an_evaluation_tells_of_every_class() {
    let place = Place::new();
    place.train(&["train.steps=1", "optim.lr=0"]);
    let ran = place.run(&["eval", "--model", "run/model", "--data", "dev.tsv"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    for needle in
        ["f1         ", "  of \"1\"\n", "macro_f1   ", "class      precision  recall      f1  support\n0 ", "predicted"]
    {
        assert!(ran.out.contains(needle), "{needle:?} is not in {}", ran.out);
    }
    // rows of one class, and a head that knows one answer only
    place.write("ones.tsv", tsv(&rows(12, 2, None).into_iter().filter(|r| r.1 == 1).collect::<Vec<_>>()));
    let eval = place.ok_json(&["eval", "--model", "run/model", "--data", "dev.tsv", "--json"]);
    let predicted: u64 = (0..2).map(|t| eval["confusion"][t][1].as_u64().unwrap()).sum();
    let one_class = predicted == 0 || predicted == 12;
    assert_eq!(ran.err.contains("every prediction is"), one_class, "{predicted}: {}", ran.err);
    let ran = place.run(&["eval", "--model", "run/model", "--data", "ones.tsv"]);
    assert!(!ran.err.contains("every prediction is \"1\""), "{}", ran.err);
}
