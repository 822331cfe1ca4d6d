//! Conversations from a file to a trained decoder, through the program: `data`, `plan`, `train`, `eval`, `bench`, and what is refused.

mod common;

use std::process::{Command, Stdio};

use common::{Place, Ran, finish, wait_for_steps};
use serde_json::{Value, json};

/// One token a character, and the signs of turns.
fn tokenizer() -> Value {
    let characters = (' '..='~').chain(['é', '\n']).map(String::from);
    let all = ["<s>", "<|end|>", "<|user|>", "<|assistant|>"].map(str::to_owned).into_iter().chain(characters);
    let vocab: serde_json::Map<_, _> = all.enumerate().map(|(i, token)| (token, json!(i))).collect();
    let special = |id: u32, token: &str| json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null, "post_processor": null,
        "added_tokens": [special(0, "<s>"), special(1, "<|end|>"), special(2, "<|user|>"), special(3, "<|assistant|>")],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": false},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": " "},
    })
}

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('No ' + m.role + ' here!') }}{% endif %}\
<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

fn config() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 32, "vocab_size": 101, "max_position_embeddings": 64, "initializer_range": 0.2, "eos_token_id": 1,
    })
}

const RECIPE: &str = r#"task = "chat"
seed = 1
output = "run"
[model]
path = "./decoder"
[data]
train = "talk.jsonl"
dev = "more.jsonl"
max_length = 60
[train]
epochs = 4
batch = 4
accumulate = 2
log_every = 1
[optim]
lr = 1e-2
"#;

fn talk(questions: &[&str]) -> String {
    let line = |q: &&str| {
        let a = if q.contains('a') { "yes" } else { "no" };
        json!({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}).to_string()
    };
    questions.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn place() -> Place {
    let place = Place::new();
    place.decoder("decoder", &config(), &tokenizer());
    place.write("decoder/tokenizer_config.json", json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|end|>", "pad_token": "<|end|>"}).to_string());
    place.write("decoder/chat_template.jinja", TEMPLATE);
    let questions = ["cat?", "dog?", "bat?", "fox?", "rat?", "hen?", "ape?", "pig?", "man?", "owl?", "ant?", "elk?"];
    place.write("talk.jsonl", talk(&questions));
    place.write("more.jsonl", talk(&["car?", "bus?", "van?"]));
    place.write("chat.toml", RECIPE);
    place
}

/// From a file to a model that answers, whose figures `eval` finds again, and whose folder has its template.
#[test]
fn a_decoder_learns_conversations() {
    let place = place();
    let plan = place.ok_json(&["plan", "chat.toml", "--json"]);
    let summary = place.ok_json(&["train", "chat.toml", "--json"]);
    let finals = &summary["final"];
    assert_eq!((summary["task"].as_str(), summary["metric"].as_str()), (Some("chat"), Some("loss")));
    let metrics = place.metrics("run");
    let of = |kind: &str| metrics.iter().filter(|line| line["kind"] == kind).cloned().collect::<Vec<_>>();
    let (first, last) = (of("train")[0]["loss"].as_f64().unwrap(), finals["loss"].as_f64().unwrap());
    assert!(last < first - 1.0, "{first} {last}");
    assert!(summary["kept_bytes"].as_u64() <= plan["kept_bytes"].as_u64(), "{summary} {plan}");
    assert!(summary["peak_bytes"].as_u64() <= plan["peak_bytes"].as_u64());
    // three answers with their ends
    assert_eq!((finals["labels"].as_u64(), finals["tokens"].as_u64()), (Some(4 + 3 + 4), Some(12 + 11 + 12)));
    assert_eq!(finals["perplexity"].as_f64().unwrap(), last.exp());
    let best = summary["best"]["value"].as_f64().unwrap();
    let lowest = of("eval").iter().map(|line| line["loss"].as_f64().unwrap()).fold(f64::INFINITY, f64::min);
    assert_eq!(best, lowest);
    for name in ["chat_template.jinja", "tokenizer_config.json", "colrow.json"] {
        assert!(place.names("run/model").contains(&name.to_owned()), "{:?}", place.names("run/model"));
    }
    let eval = place.ok_json(&["eval", "--model", "run", "--data", "more.jsonl", "--json"]);
    assert_eq!(
        (eval["loss"].as_f64(), eval["labels"].as_u64(), eval["examples"].as_u64()),
        (Some(best), Some(11), Some(3))
    );
    assert!(eval["token_accuracy"].as_f64().unwrap() > 0.3, "{eval}");
    let last = place.ok_json(&["eval", "--model", "run", "--data", "more.jsonl", "--train-on", "all", "--json"]);
    assert_eq!(last["labels"].as_u64(), Some(35 - 3));
    let text = place.ok(&["eval", "--model", "run", "--data", "more.jsonl"]);
    assert!(text.contains("perplexity ") && text.contains("labels         11\ntokens         35"), "{text}");
    let refused = place.run(&["predict", "--model", "run", "--data", "more.jsonl"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("colrow predict gives labels, and this model goes on with texts"), "{}", refused.err);
}

/// Adapters too; a run that was stopped goes on to the same model.
#[test]
fn adapters_learn_conversations_and_a_run_goes_on() {
    let place = place();
    let lora = ["--set", "train.method=lora", "--set", "train.save_every=2", "--set", "train.keep_checkpoints=9"];
    let train = |extra: &[&str]| place.ok_json(&[&["train", "chat.toml", "--json"], &lora[..], extra].concat());
    let summary = train(&[]);
    let names = place.names("run/model");
    assert!(
        names.contains(&"adapter_model.safetensors".to_owned()) && names.contains(&"chat_template.jinja".to_owned())
    );
    train(&["--set", "output=cut", "--set", "train.epochs=2", "--set", "optim.schedule=constant"]);
    train(&["--set", "output=cut", "--set", "optim.schedule=constant", "--resume"]);
    train(&["--set", "output=whole", "--set", "optim.schedule=constant"]);
    assert_eq!(place.read("cut/model/adapter_model.safetensors"), place.read("whole/model/adapter_model.safetensors"));
    // what is written is what was learned
    let eval = place.ok_json(&["eval", "--model", "run", "--data", "more.jsonl", "--json"]);
    let (loss, best) = (eval["loss"].as_f64().unwrap(), summary["best"]["value"].as_f64().unwrap());
    assert!((loss - best).abs() < 1e-5 * best, "{loss} {best}");
}

/// What is trained, and how its weights are held, makes no difference to where a run goes on that was killed.
#[test]
#[cfg(unix)]
fn killed_runs_go_on() {
    let place = place();
    for sets in [
        &["train.method=full", "train.weights=bf16", "keep.policy=lean", "keep.ratio=0.5", "keep.norms=cached"][..],
        &["train.method=lora", "keep.policy=recompute", "model.base=nf4", "lora.dropout=0.1"],
    ] {
        let run = |output: &str, more: &[&'static str]| {
            let all = [&["train.epochs=60", "train.save_every=5", "train.eval_every=30"], sets].concat();
            let mut args = vec!["train", "chat.toml", "--set", output];
            args.extend(all.iter().flat_map(|set| ["--set", set]).chain(more.iter().copied()));
            place.interruptible(&args)
        };
        let ended = |mut command: Command| {
            let ran = finish(&mut command);
            assert_eq!(ran.code, Some(0), "{}", ran.err);
            assert!(!ran.err.contains("it starts from the beginning"), "{}", ran.err);
        };
        ended(run("output=whole", &[]));
        let mut child = run("output=killed", &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_steps(&place, &mut child, "killed", place.metrics("whole").len() / 2);
        child.kill().unwrap();
        assert!(child.wait().unwrap().code().is_none(), "the run ended before it was killed");
        ended(run("output=killed", &["--resume"]));
        let weights = place.names("whole/model").into_iter().find(|name| name.ends_with(".safetensors")).unwrap();
        let [ours, whole] = ["killed", "whole"].map(|run| place.read(&format!("{run}/model/{weights}")));
        assert!(ours == whole, "{sets:?}");
        assert_eq!(place.metrics("killed"), place.metrics("whole"));
        for run in ["whole", "killed"] {
            std::fs::remove_dir_all(place.path(run)).unwrap();
        }
    }
}

/// An adapter on a head that is tied to the embedding is merged into a weight of the head's own.
#[test]
fn a_merge_that_unties_says_so() {
    let place = place();
    let mut tied = config();
    tied["tie_word_embeddings"] = json!(true);
    place.decoder("tied", &tied, &tokenizer());
    for name in ["config.json", "model.safetensors"] {
        place.write(&format!("decoder/{name}"), place.read(&format!("tied/{name}")));
    }
    let sets = ["train.method=lora", "lora.targets=['q_proj','lm_head']", "train.epochs=2", "keep.policy=recompute"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    place.ok(&[&["train", "chat.toml"], &sets[..]].concat());
    // an embedding that is saved whole would be another model in PEFT
    let embedding = ["--set", "train.modules_to_save=['embed_tokens']", "--set", "output=other"];
    let refused = place.run(&[&["train", "chat.toml"], &sets[..], &embedding].concat());
    assert!(refused.code == Some(2) && refused.err.contains("is the head's weight too"), "{}", refused.err);
    let ran = place.run(&["merge", "--model", "run", "--out", "merged"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.err.contains("config.json now says tie_word_embeddings = false"), "{}", ran.err);
    assert_eq!(place.json("merged/config.json")["tie_word_embeddings"], json!(false));
    let loss = |model: &str| {
        place.ok_json(&["eval", "--model", model, "--data", "more.jsonl", "--json"])["loss"].as_f64().unwrap()
    };
    let (adapted, merged) = (loss("run"), loss("merged"));
    assert!((adapted - merged).abs() < 1e-5 * adapted && adapted != loss("decoder"), "{adapted} {merged}");
}

#[test]
fn plain_texts_are_learned() {
    let place = place();
    place.write("texts.txt", "abcabc\nbcabca\ncabcab\nabc\n");
    let sets = ["--set", "task=text", "--set", "data.train=texts.txt", "--set", "data.dev=texts.txt"];
    let summary = place.ok_json(&[&["train", "chat.toml", "--json"], &sets[..]].concat());
    // no beginning is added, the end is; the first counts for nothing
    assert_eq!((summary["final"]["labels"].as_u64(), summary["final"]["tokens"].as_u64()), (Some(21), Some(25)));
    assert!(place.ok_json(&["eval", "--model", "run", "--data", "texts.txt", "--json"])["loss"].is_f64());
    let table = place.run(&[&["train", "chat.toml"], &sets[..2], &["--set", "output=other"]].concat());
    assert!(table.err.contains("conversations are data of task = \"chat\""), "{}", table.err);
    place.write("texts.txt", "abc".repeat(30));
    let longer = ["--set", "data.max_length=128", "--set", "output=longer"];
    let ran = place.run(&[&["train", "chat.toml"], &sets[..], &longer].concat());
    assert!(
        ran.err.contains("the longest example has 91 tokens, and max_position_embeddings in config.json is 64"),
        "{}",
        ran.err
    );
    let said = "max_position_embeddings in config.json, 64: later positions the model has not learned";
    let ran = place.run(&["generate", "--model", "decoder", "--prompt", &"abc".repeat(30), "--max-tokens", "1"]);
    assert!(ran.code == Some(0) && ran.err.contains(said), "{}", ran.err);
    let refused = place.run(&[&["data", "chat.toml"], &sets[..], &["--set", "data.train_on=last"]].concat());
    assert!(refused.err.contains("data.train_on: task text counts everything"), "{}", refused.err);
}

#[test]
fn a_folder_has_its_parts() {
    let place = place();
    place.write("talks/train.jsonl", talk(&["cat?", "dog?"]));
    place.write("talks/validation.jsonl", talk(&["van?"]));
    let sets = ["--set", "data.train=talks", "--set", "train.epochs=1"];
    place.write("chat.toml", RECIPE.replace("dev = \"more.jsonl\"\n", ""));
    let summary = place.ok_json(&[&["train", "chat.toml", "--json"], &sets[..]].concat());
    assert_eq!((summary["examples"].as_u64(), summary["final"]["labels"].as_u64()), (Some(2), Some(4)));
    let refused = place.run(&["data", "chat.toml", "--set", "data.train=decoder"]);
    assert!(refused.err.contains("expected train.jsonl or "), "{}", refused.err);
}

#[test]
fn examples_are_shown_as_the_model_gets_them() {
    let place = place();
    let shown = place.ok(&["data", "chat.toml", "--show", "2"]);
    let first = "── line 1: 12 tokens, 4 count in the loss\n<s><|user|>cat?<|end|><|assistant|>⟦yes<|end|>⟧\n";
    assert!(shown.starts_with(first), "{shown}");
    assert!(shown.ends_with("training data: 12 examples, 138 tokens, 42 count in the loss\n"), "{shown}");
    let lines = place.ok(&["data", "chat.toml", "--show", "2", "--json"]);
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), lines[1]["place"].as_str()), (2, Some("line 2")));
    let text: Vec<char> = lines[0]["text"].as_str().unwrap().chars().collect();
    let span = &lines[0]["spans"][0];
    let (start, end) = (span["start"].as_u64().unwrap() as usize, span["end"].as_u64().unwrap() as usize);
    assert_eq!(text[start..end].iter().collect::<String>(), "yes<|end|>");
    assert_eq!((lines[0]["ids"].as_array().unwrap().len(), lines[0]["weights"][11].as_f64()), (12, Some(1.0)));
    // what is cut is said
    let cut = place.run(&["data", "chat.toml", "--set", "data.max_length=10", "--show", "1"]);
    assert!(cut.out.contains("10 tokens, 2 count in the loss, 2 cut off") && cut.out.contains("⟦ye⟧"), "{}", cut.out);
    assert!(cut.err.contains("12 of 12 examples were cut to 10 tokens (18 of 138 tokens left out)"), "{}", cut.err);
    let labelled = place.ok(&["data", "recipe.toml", "--show", "1"]);
    assert!(labelled.starts_with("── line 2: ") && labelled.contains(", label "), "{labelled}");
}

#[test]
fn benchmarks_run_decoders() {
    let place = place();
    place.write("config.json", config().to_string());
    let args = [
        "bench",
        "--model-config",
        "config.json",
        "--batch",
        "3",
        "--seq",
        "20",
        "--steps",
        "1",
        "--warmup",
        "0",
        "--json",
    ];
    let run = place.ok_json(&args);
    let plan = place.ok_json(&[&args[..], &["--plan"]].concat());
    assert_eq!((&run["kept_bytes"], &run["peak_bytes"]), (&plan["kept_bytes"], &plan["peak_bytes"]));
}

#[test]
fn bad_conversations_are_refused() {
    let place = place();
    let run = |sets: &[&str]| -> Ran {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        place.run(&[&["train", "chat.toml"], &sets[..]].concat())
    };
    let refused = |line: &str, expected: &str| {
        place.write("bad.jsonl", format!("{}\n{line}\n", talk(&["cat?"])));
        let ran = run(&["data.train=bad.jsonl"]);
        assert!(ran.code == Some(1) && ran.err.contains(expected), "{line}: {}", ran.err);
        assert!(ran.err.contains("in bad.jsonl"), "{}", ran.err);
        assert!(place.names("run").is_empty(), "{:?}", place.names("run"));
    };
    refused(
        r#"{"messages": [{"role": "robot", "content": "u"}, {"role": "assistant", "content": "a"}]}"#,
        "error: the chat template refuses the conversation: No robot here!\n  in line 2\n",
    );
    refused(
        r#"{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": ""}]}"#,
        "error: message 2 (assistant) is empty: there is nothing to learn from it\n  in line 2\n",
    );
    refused(r#"{"messages": [{"content": "u"}]}"#, "error: message 1 has no role; found keys: content\n  in line 2\n");
    refused(
        r#"{"messages": [{"from": "bing", "value": "u"}]}"#,
        "error: message 1 is from \"bing\", which is not known: human, gpt and system are\n  in line 2\n",
    );
    refused(r#"{"messages": "hello"}"#, "error: expected a list of messages, found a string\n  in line 2\n");
    refused(r#"{"talk": []}"#, "error: expected the key \"messages\", found keys: talk\n  in line 2\n");
    // what is longer than the limit is cut, and said; what has no label then is left out
    let long =
        json!({"messages": [{"role": "user", "content": "x".repeat(99)}, {"role": "assistant", "content": "a"}]});
    place.write("long.jsonl", format!("{}\n{long}\n", talk(&["cat?"])));
    let ran = run(&["data.train=long.jsonl", "train.epochs=1"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(
        ran.err.contains("training data: 1 of 2 examples were cut to 60 tokens (45 of 117 tokens left out)"),
        "{}",
        ran.err
    );
    assert!(
        ran.err
            .contains("1 of 2 examples have no token that counts in the loss and are left out; the first is in line 2"),
        "{}",
        ran.err
    );
    std::fs::remove_dir_all(place.path("run")).unwrap();
    place.write("long.jsonl", format!("{long}\n"));
    let ran = run(&["data.train=long.jsonl"]);
    assert!(
        ran.code == Some(1) && ran.err.contains("of 1 examples none has a token that counts in the loss"),
        "{}",
        ran.err
    );

    place.write("decoder/chat_template.jinja", "{% for m in messages %}");
    let ran = run(&[]);
    assert!(
        ran.err.contains("error: the chat template does not parse") && ran.err.contains("chat_template.jinja"),
        "{}",
        ran.err
    );
    std::fs::remove_file(place.path("decoder/chat_template.jinja")).unwrap();
    let ran = run(&[]);
    assert!(ran.err.contains("error: expected a chat template, found neither chat_template.jinja nor chat_template in tokenizer_config.json"), "{}", ran.err);
    let ran = run(&["model.path=./model", "data.max_length=32"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.err.contains("task chat is for models that go on with a text, and BERT is none"), "{}", ran.err);
    let ran = run(&["task=classify", "data.train=train.tsv", "data.dev=dev.tsv"]);
    assert!(ran.err.contains("task classify is for models with labels, and Llama goes on with texts"), "{}", ran.err);
}

/// Broken and foreign files of a decoder are named, before anything is written.
#[test]
fn bad_decoders_are_refused() {
    let place = place();
    let tune = |path: &str, sets: &[&str]| -> Ran {
        let model = format!("model.path=./{path}");
        let sets = sets.iter().copied().chain([model.as_str()]).flat_map(|set| ["--set", set]);
        place.run(&["train", "chat.toml"].into_iter().chain(sets).collect::<Vec<_>>())
    };
    let copy = |to: &str| {
        for name in place.names("decoder") {
            place.write(&format!("{to}/{name}"), place.read(&format!("decoder/{name}")));
        }
    };
    let refused = |path: &str, needles: &[&str]| {
        let ran = tune(path, &[]);
        assert!(
            ran.code == Some(1) && needles.iter().all(|needle| ran.err.contains(needle)),
            "{needles:?}: {}",
            ran.err
        );
        assert!(place.names("run").is_empty(), "{:?}", place.names("run"));
    };

    copy("shards");
    std::fs::rename(place.path("shards/model.safetensors"), place.path("shards/model-1.safetensors")).unwrap();
    let index = json!({"weight_map": {"model.norm.weight": "model-1.safetensors", "model.embed_tokens.weight": "model-2.safetensors"}});
    place.write("shards/model.safetensors.index.json", index.to_string());
    refused("shards", &["error: the index names shards that are not there: model-2.safetensors"]);

    copy("cut");
    place.write("cut/model.safetensors", &place.read("decoder/model.safetensors")[..1000]);
    refused("cut", &["truncated", "cut/model.safetensors"]);

    // more tokens than the embedding has rows, where one of them is used
    place.decoder(
        "small",
        &json!({"vocab_size": 60, "tie_word_embeddings": true}).as_object().unwrap().iter().fold(
            config(),
            |mut all, (key, value)| {
                all[key] = value.clone();
                all
            },
        ),
        &tokenizer(),
    );
    for name in ["tokenizer_config.json", "chat_template.jinja"] {
        place.write(&format!("small/{name}"), place.read(&format!("decoder/{name}")));
    }
    refused("small", &["is not below vocab_size = 60", "in talk.jsonl"]);

    copy("foreign");
    let mut foreign = config();
    foreign["model_type"] = json!("mixtral");
    place.write("foreign/config.json", foreign.to_string());
    refused("foreign", &["mixtral"]);
    (foreign["model_type"], foreign["num_local_experts"]) = (json!("llama"), json!(8));
    place.write("foreign/config.json", foreign.to_string());
    refused("foreign", &["num_local_experts"]);

    // an adapter on a model that has other sizes
    let ran = tune("decoder", &["train.method=lora", "train.epochs=1"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let mut wide = config();
    wide["hidden_size"] = json!(32);
    place.decoder("wide", &wide, &tokenizer());
    let ran = place.run(&["eval", "--model", "run", "--base", "wide", "--data", "more.jsonl"]);
    assert!(ran.code == Some(1) && ran.err.contains("error: ") && ran.err.contains("lora_"), "{}", ran.err);
    let mut deep = config();
    deep["num_hidden_layers"] = json!(1);
    place.decoder("deep", &deep, &tokenizer());
    let ran = place.run(&["merge", "--model", "run", "--base", "deep", "--out", "merged"]);
    assert!(ran.code == Some(1) && ran.err.contains("layers.1."), "{}", ran.err);
    assert!(place.names("merged").is_empty());
}

/// A lean policy is not warned of what it cannot help.
#[test]
fn a_lean_run_of_adapters_is_not_warned() {
    let place = place();
    for policy in ["keep.policy=lean", "keep.policy=leanest"] {
        let ran = place.run(&[
            "plan",
            "chat.toml",
            "--set",
            "train.method=lora",
            "--set",
            policy,
            "--set",
            "data.max_length=512",
        ]);
        assert!(ran.code == Some(0) && !ran.err.contains("warning"), "{}", ran.err);
    }
}

/// The day is the run's where the template asks for it.
#[test]
fn a_template_with_todays_date_is_told() {
    let place = place();
    place.write("decoder/chat_template.jinja", TEMPLATE.replace("{{ bos_token }}", "{{ strftime_now('%Y-%m-%d') }}"));
    let ran = place.run(&["data", "chat.toml"]);
    assert!(
        ran.err.contains("the chat template writes today's date") && ran.err.contains("data.date = \""),
        "{}",
        ran.err
    );
    let ran = place.run(&["data", "chat.toml", "--set", "data.date=2024-02-29"]);
    assert!(ran.out.contains("2024-02-29<|user|>cat?") && !ran.err.contains("date"), "{} {}", ran.out, ran.err);
}
