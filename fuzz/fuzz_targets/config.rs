#![no_main]
use std::path::Path;

use colrow_models::config::BertConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = BertConfig::from_json(bytes, Path::new("config.json")) else { return };
    let written = config.to_json();
    let again = BertConfig::from_json(written.as_bytes(), Path::new("written.json"))
        .unwrap_or_else(|e| panic!("{e}\n{written}"));
    assert_eq!(again.to_json(), written);
    // The text behind them differs: writing names the architecture, the labels and the number type.
    macro_rules! same {
        ($($field:ident)*) => { $(assert_eq!(again.$field, config.$field, "{}\n{written}", stringify!($field));)* };
    }
    same!(hidden_size num_hidden_layers num_attention_heads intermediate_size vocab_size max_position_embeddings
        type_vocab_size hidden_act layer_norm_eps hidden_dropout_prob attention_probs_dropout_prob classifier_dropout
        initializer_range pad_token_id labels problem_type);
});
