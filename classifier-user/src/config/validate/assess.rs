//! Checks of `[assess]`.

use reqwest::Url;

use super::super::AssessConfig;
use crate::health::Kind;

pub(super) fn assess(config: &AssessConfig) -> Result<(), String> {
    let targets = config.targets.iter().flat_map(|targets| targets.iter());
    for target in targets {
        if !matches!(target.kind, Kind::Tls | Kind::Turn | Kind::Stun) {
            return Err(format!(
                "assess.targets: {target} cannot be assessed; there are tls:HOST:PORT and turn:HOST:PORT"
            ));
        }
        if target.kind == Kind::Tls && target.address().is_some() {
            return Err(format!(
                "assess.targets: {target} has no name, so its certificate cannot be verified"
            ));
        }
    }
    if let Some(stun) = config.stun.as_ref().filter(|stun| stun.kind != Kind::Stun) {
        return Err(format!("assess.stun: {stun} is not stun:HOST:PORT"));
    }
    match &config.download {
        Some(url) if !is_web(url) => Err(format!(
            "assess.download = {url:?} is no URL of a file, as in \"https://contoso.sharepoint.com/FILE\""
        )),
        _ => Ok(()),
    }
}

/// Tells whether a text is a URL of a web server by its name.
fn is_web(text: &str) -> bool {
    let url = Url::parse(text).ok();
    url.is_some_and(|url| ["http", "https"].contains(&url.scheme()) && url.domain().is_some())
}
