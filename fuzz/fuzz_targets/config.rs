#![no_main]
use std::path::Path;

use colrow_models::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(config) = Config::from_json(bytes, Path::new("config.json")) else { return };
    let written = config.to_json();
    let again = Config::from_json(written.as_bytes(), Path::new("written.json"))
        .unwrap_or_else(|e| panic!("{e}\n{written}"));
    assert_eq!(again.to_json(), written);
    // The text behind them differs: writing names the architecture, the labels and the number type.
    macro_rules! same {
        ($($field:ident)*) => { $(assert_eq!(again.$field, config.$field, "{}\n{written}", stringify!($field));)* };
    }
    same!(architecture labels problem_type);
});
