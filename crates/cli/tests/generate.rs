//! `colrow generate` with a tiny decoder whose answers are known.

mod common;

use std::fs;
use std::path::Path;

use common::Place;
use serde_json::{Value, json};

/// The model of `tests/golden`, with a word for each token, and its prompts and answers in words.
fn place() -> (Place, Vec<(String, String)>) {
    let place = Place::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama-llama");
    for file in ["config.json", "model.safetensors"] {
        place.write(&format!("decoder/{file}"), fs::read(golden.join(file)).unwrap());
    }
    let vocab: serde_json::Map<_, _> = (0..37).map(|i| (format!("w{i}"), json!(i))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    place.write("decoder/tokenizer.json", tokenizer.to_string());
    place.write("decoder/tokenizer_config.json", r#"{"tokenizer_class": "PreTrainedTokenizerFast"}"#);
    let inputs: Value = serde_json::from_slice(&fs::read(golden.join("inputs.json")).unwrap()).unwrap();
    let words = |ids: &Value| {
        let ids = ids.as_array().unwrap().iter().map(|id| format!("w{id}"));
        ids.collect::<Vec<_>>().join(" ")
    };
    let pairs = inputs["sequences"].as_array().unwrap().iter().zip(inputs["answers"].as_array().unwrap());
    (place, pairs.map(|(prompt, answer)| (words(prompt), words(answer))).collect())
}

const TOKENS: [&str; 2] = ["--max-tokens", "12"];

#[test]
fn texts_go_on_as_transformers_does() {
    let (place, pairs) = place();
    for (prompt, answer) in &pairs {
        let out = place.ok(&[&["generate", "--model", "decoder", "--prompt", prompt][..], &TOKENS].concat());
        assert_eq!(out, format!("{answer}\n"));
    }
    let lines: String = pairs.iter().map(|(prompt, _)| format!("{}\n", json!({"prompt": prompt}))).collect();
    place.write("prompts.jsonl", lines);
    let out =
        place.ok(&[&["generate", "--model", "decoder", "--prompts", "prompts.jsonl", "--json"][..], &TOKENS].concat());
    for (line, (prompt, answer)) in out.lines().zip(&pairs) {
        let line: Value = serde_json::from_str(line).unwrap();
        let tokens = answer.split(' ').count();
        let finish = if tokens == 12 { "length" } else { "stop" };
        assert_eq!(line, json!({"prompt": prompt, "text": answer, "tokens": tokens, "finish": finish}));
    }
    assert_eq!(out.lines().count(), pairs.len());
}

/// Whose text is whose is told where there are several.
#[test]
fn texts_of_several_prompts_have_headings() {
    let (place, pairs) = place();
    let [(first, answer), (second, other)] = &pairs[..2] else { unreachable!() };
    place.write("prompts.txt", format!("{first}\n{second}\n"));
    let out = place.ok(&[&["generate", "--model", "decoder", "--prompts", "prompts.txt"][..], &TOKENS].concat());
    assert_eq!(out, format!("==> 1 of 2: {first} <==\n{answer}\n\n==> 2 of 2: {second} <==\n{other}\n"));
}

/// Of conversations the headings are what was said last.
#[test]
fn answers_of_several_conversations_have_headings() {
    let (place, pairs) = place();
    let template = "{% for m in messages %}{{ m.content }}{% if not loop.last %} {% endif %}{% endfor %}";
    place.write("decoder/chat_template.jinja", template);
    let talk = |text: &str| json!([{"role": "user", "content": "w1"}, {"role": "user", "content": text}]);
    place.write("talk.jsonl", format!("{}\n{}\n", talk(&pairs[0].0), talk(&pairs[1].0)));
    let out = place.ok(&[&["generate", "--model", "decoder", "--chat", "talk.jsonl"][..], &TOKENS].concat());
    for (i, (prompt, _)) in pairs[..2].iter().enumerate() {
        assert!(out.contains(&format!("==> {} of 2: {prompt} <==\n", i + 1)), "{out}");
    }
}

/// Options of drawing do nothing where nothing is drawn.
#[test]
fn options_without_a_temperature_are_told() {
    let (place, pairs) = place();
    let run = |more: &[&str]| {
        place.run(
            &[&["generate", "--model", "decoder", "--prompt", &pairs[0].0, "--max-tokens", "1"][..], more].concat(),
        )
    };
    let told = run(&["--top-k", "5", "--seed", "3"]).err;
    assert!(told.contains("warning: --top-k, --seed without --temperature: nothing is drawn"), "{told}");
    for more in [&[][..], &["--top-k", "5", "--seed", "3", "--temperature", "1"]] {
        assert!(!run(more).err.contains("without --temperature"), "{more:?}");
    }
}

/// Conversations are given in a template, by whichever names their files have.
#[test]
fn conversations_are_answered() {
    let (place, pairs) = place();
    let (prompt, answer) = &pairs[0];
    let template =
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% if not loop.last %} {% endif %}{% endfor %}";
    place.write("decoder/chat_template.jinja", template);
    for (key, [role, content], user) in
        [("messages", ["role", "content"], "user"), ("conversations", ["from", "value"], "human")]
    {
        place.write("talk.jsonl", json!({key: [{role: user, content: prompt}]}).to_string());
        let out = place.ok(&[&["generate", "--model", "decoder", "--chat", "talk.jsonl"][..], &TOKENS].concat());
        assert_eq!(out, format!("{answer}\n"));
    }
}

/// A seed repeats its text, whatever is drawn; a text that ends an answer is not part of it.
#[test]
fn drawn_texts_repeat_and_stops_are_left_out() {
    let (place, pairs) = place();
    let (prompt, answer) = &pairs[0];
    let run = |more: &[&str]| {
        place.ok(&[&["generate", "--model", "decoder", "--prompt", prompt][..], &TOKENS, more].concat())
    };
    let drawn = ["--temperature", "3", "--top-k", "20", "--top-p", "0.95"];
    let by = |seed| run(&[&drawn[..], &["--seed", seed]].concat());
    assert_eq!(by("1"), by("1"));
    assert_ne!(by("1"), by("2"));
    assert_eq!(run(&["--cache", "bf16"]).split(' ').next(), answer.split(' ').next());
    let third = answer.split(' ').nth(2).unwrap();
    let before = answer.split_once(third).unwrap().0;
    assert_eq!(run(&["--stop", third]), format!("{before}\n"));
}

#[test]
fn what_is_wrong_is_said() {
    let (place, _) = place();
    let fails = |args: &[&str], code: i32, expected: &str| {
        let ran = place.run(&[&["generate"], args].concat());
        assert_eq!(ran.code, Some(code), "{}", ran.err);
        assert!(ran.err.contains(expected), "{}", ran.err);
    };
    fails(&["--model", "decoder"], 2, "--prompt");
    fails(&["--model", "decoder", "--prompt", ""], 2, "expected a prompt of at least one token, found none");
    fails(&["--model", "decoder", "--prompt", "w1", "--temperature", "200"], 2, "expected a number from 0 to 100");
    fails(
        &["--model", "model", "--prompt", "w1"],
        2,
        "expected a model that goes on with texts (a decoder), found a BERT",
    );
    fails(
        &["--model", "decoder", "--adapter", "decoder", "--prompt", "w1"],
        2,
        "--adapter: expected the folder of an adapter",
    );
    place.write("p.jsonl", "{\"prompt\": \"w1\"}\n{\"text\": \"w1\"}\n");
    fails(&["--model", "decoder", "--prompts", "p.jsonl"], 1, "expected an object with a text `prompt`: ");
    fails(&["--model", "decoder", "--chat", "p.jsonl"], 1, "expected the key \"messages\", found keys: prompt");
    fails(&["--model", "decoder", "--prompt", "w1", "--temperature", "-1"], 2, "expected a number from 0 to 100");
    // an embedding of NaN
    let mut weights = place.read("decoder/model.safetensors");
    let count = weights.len();
    weights[count - 16 * 1024..].fill(0xff);
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        place.write(&format!("broken/{file}"), place.read(&format!("decoder/{file}")));
    }
    place.write("broken/model.safetensors", weights);
    fails(&["--model", "broken", "--prompt", "w1"], 1, "the model gives numbers that are not finite");
    place.write("texts.jsonl", "{\"text\": \"w1 w2\"}\n");
    let ran = place.run(&["eval", "--model", "broken", "--task", "text", "--data", "texts.jsonl"]);
    assert!(ran.code == Some(1) && ran.err.contains("the loss is NaN"), "{}", ran.err);
    place.write("none.txt", "\n\n");
    fails(&["--model", "decoder", "--prompts", "none.txt"], 1, "expected prompts, found none");
}
