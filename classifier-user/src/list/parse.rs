//! Reading a response of the web service, as saved by curl.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use breakout_common::table::Transport;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{Category, EndpointSet, Instance, List, PortRange, Problem, SetKey, parse_ports};
use crate::plain::{into_plain, plain};

/// The largest file that is read as a list. The real ones are below 100 KiB.
const MAX_FILE: u64 = 64 << 20;

/// Why a text is no list.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// The file could not be read.
    #[error("cannot read the list {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file is too large to be a list.
    #[error(
        "{source_name} is {size} bytes long; no list is larger than {MAX_FILE}. Is it the right file?"
    )]
    TooLarge {
        /// Where the text came from.
        source_name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// It is a web page.
    #[error(
        "{0} is an HTML page, not a list. A proxy's log-in or error page was probably saved in its place; \
         fetch https://endpoints.office.com/endpoints/INSTANCE?clientrequestid=GUID again, past the proxy"
    )]
    Html(String),
    /// It ends too early.
    #[error("{0} is cut off: {1}. Fetch it again")]
    CutOff(String, serde_json::Error),
    /// It is no JSON array of endpoint sets.
    #[error("{0} is no response of the endpoints web service: {1}")]
    Json(String, serde_json::Error),
    /// It is JSON, but holds nothing to steer by.
    #[error(
        "{0} has no usable endpoint set: none of its {1} sets has both addresses and ports. \
         Expected the answer of /endpoints/INSTANCE"
    )]
    Empty(String, usize),
    /// Two rows have one id.
    #[error("{0} has endpoint set {1} twice; it cannot be told which one holds")]
    Duplicate(String, u32),
}

/// One row as the service writes it. Unknown fields are of no interest; missing and empty ones are ordinary.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: u32,
    #[serde(default)]
    service_area: Option<String>,
    #[serde(default)]
    urls: Option<Vec<String>>,
    #[serde(default)]
    ips: Option<Vec<String>>,
    #[serde(default)]
    tcp_ports: Option<String>,
    #[serde(default)]
    udp_ports: Option<String>,
    #[serde(default)]
    express_route: Option<bool>,
    #[serde(default)]
    category: Option<String>,
    #[serde(default)]
    required: Option<bool>,
}

/// Reads a file that holds the answer of `/endpoints/INSTANCE`.
///
/// # Errors
///
/// As [`parse`], and when the file cannot be read.
pub fn read_file(path: &Path, instance: Instance) -> Result<List, ParseError> {
    parse(&read_bytes(path)?, instance, &path.display().to_string())
}

/// Reads a file that may hold a list.
///
/// # Errors
///
/// When it cannot be read, or is too large.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, ParseError> {
    let read_error = |error| ParseError::Read {
        path: path.to_owned(),
        error,
    };
    let size = fs::metadata(path).map_err(read_error)?.len();
    if size > MAX_FILE {
        return Err(ParseError::TooLarge {
            source_name: path.display().to_string(),
            size,
        });
    }
    fs::read(path).map_err(read_error)
}

/// Parses the answer of `/endpoints/INSTANCE`. `source_name` says in errors where it came from.
///
/// What is wrong inside a row costs that part of the row only and becomes a [`Problem`].
///
/// # Errors
///
/// When the text is not such an answer as a whole, or has no usable endpoint set.
pub fn parse(text: &[u8], instance: Instance, source_name: &str) -> Result<List, ParseError> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    if text.trim_ascii_start().starts_with(b"<") {
        return Err(ParseError::Html(source_name.to_owned()));
    }
    let rows: Vec<Value> = serde_json::from_slice(text).map_err(|error| {
        if error.is_eof() {
            ParseError::CutOff(source_name.to_owned(), error)
        } else {
            ParseError::Json(source_name.to_owned(), error)
        }
    })?;
    let count = rows.len();
    let mut seen = BTreeSet::new();
    let mut sets = Vec::with_capacity(count);
    let mut problems = Vec::new();
    for row in rows {
        let id = row
            .get("id")
            .and_then(Value::as_u64)
            .and_then(|id| id.try_into().ok());
        match Row::deserialize(row) {
            Ok(row) if seen.insert(row.id) => {
                sets.push(endpoint_set(row, instance, &mut problems));
            }
            Ok(row) => return Err(ParseError::Duplicate(source_name.to_owned(), row.id)),
            Err(error) => problems.push(Problem {
                id,
                problem: format!("the row cannot be understood: {error}"),
                is_damage: true,
            }),
        }
    }
    if !sets.iter().any(EndpointSet::is_usable) {
        return Err(ParseError::Empty(source_name.to_owned(), count));
    }
    Ok(List {
        instance,
        version: None,
        source: plain(source_name).into_owned(),
        fetched: None,
        record: None,
        sets,
        problems,
        pending: Vec::new(),
    })
}

fn endpoint_set(row: Row, instance: Instance, problems: &mut Vec<Problem>) -> EndpointSet {
    let id = row.id;
    let mut report = |problem: String, is_damage| {
        problems.push(Problem {
            id: Some(id),
            problem: into_plain(problem),
            is_damage,
        });
    };
    let ips = row.ips.unwrap_or_default();
    let mut prefixes = Vec::with_capacity(ips.len());
    for text in &ips {
        match parse_prefix(text) {
            Ok(prefix) => prefixes.push(prefix),
            Err(problem) => report(problem, true),
        }
    }
    let mut ports: Vec<PortRange> = Vec::new();
    for (transport, text) in [
        (Transport::Tcp, row.tcp_ports),
        (Transport::Udp, row.udp_ports),
    ] {
        match parse_ports(transport, &text.unwrap_or_default()) {
            Ok(ranges) => ports.extend(ranges),
            Err(problem) => report(problem, true),
        }
    }
    if !prefixes.is_empty() && ports.is_empty() {
        report(
            "has addresses but no ports, so it cannot be matched exactly".to_owned(),
            false,
        );
    }
    let category = row.category.map(into_plain).unwrap_or_default();
    let category = Category::from(category.as_str());
    if let Category::Other(name) = &category
        && !prefixes.is_empty()
    {
        let problem = format!("category \"{name}\" is not known, so it is not steered");
        report(problem, false);
    }
    let urls = row.urls.unwrap_or_default();
    EndpointSet {
        key: SetKey::published(instance, id),
        service_area: row.service_area.map(into_plain).unwrap_or_default(),
        category,
        prefixes,
        ports,
        urls: urls.into_iter().map(into_plain).collect(),
        required: row.required.unwrap_or_default(),
        express_route: row.express_route.unwrap_or_default(),
        withdrawn: None,
    }
}

/// A prefix, or an address alone, which stands for itself.
///
/// # Errors
///
/// Says what is wrong with the text.
pub fn parse_prefix(text: &str) -> Result<IpNet, String> {
    let prefix: IpNet = text
        .parse()
        .or_else(|_| text.parse().map(|address: std::net::IpAddr| address.into()))
        .map_err(|_| format!("\"{text}\" is no IP prefix"))?;
    if prefix.network() != prefix.addr() {
        return Err(format!(
            "\"{text}\" has address bits beyond its prefix length"
        ));
    }
    if prefix.prefix_len() == 0 {
        return Err(format!("\"{text}\" covers every address"));
    }
    Ok(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worldwide(text: &str) -> Result<List, ParseError> {
        parse(text.as_bytes(), Instance::Worldwide, "saved.json")
    }

    const SET: &str = r#"{"id":1,"ips":["40.96.0.0/13","2603:1006::/40"],"tcpPorts":"80, 443",
        "category":"Optimize","serviceArea":"Exchange","somethingNew":[1]}"#;

    #[test]
    fn a_row_with_unknown_fields_and_missing_ones_is_read() {
        let list = worldwide(&format!(r#"[{SET},{{"id":8,"urls":["*.outlook.com"]}}]"#)).unwrap();
        assert_eq!(list.sets[0].ports.len(), 2);
        assert_eq!(list.prefix_counts(&Category::Optimize), (1, 1));
        assert!(list.problems.is_empty());
        assert_eq!(list.sets[1].category, Category::Other(String::new()));
    }

    #[test]
    fn what_cannot_be_used_is_reported_by_id() {
        let list = worldwide(&format!(
            r#"[{SET},
            {{"id":2,"ips":["40.96.0.1/13","0.0.0.0/0","x","1.2.3.4"],"tcpPorts":"eighty","category":"Allow"}},
            {{"id":3,"ips":["1.2.3.0/24"],"category":"Allow"}},
            {{"id":4,"ips":["1.2.3.0/24"],"tcpPorts":"80","category":"Optimise"}}]"#
        ))
        .unwrap();
        let of = |id| list.problems.iter().filter(|p| p.id == Some(id)).count();
        assert_eq!((of(1), of(2), of(3), of(4)), (0, 5, 1, 1));
        assert_eq!(list.sets[1].prefixes, ["1.2.3.4/32".parse().unwrap()]);
    }

    #[test]
    fn what_is_no_list_says_what_it_is() {
        let message = |text: &str| worldwide(text).unwrap_err().to_string();
        assert!(message(" <!DOCTYPE html><title>Log in</title>").contains("HTML page"));
        assert!(message(&format!("[{}", &SET[..60])).contains("cut off"));
        assert!(message("").contains("cut off"));
        assert!(message("{}").contains("no response"));
        assert!(message("[]").contains("no usable endpoint set"));
        assert!(message(r#"[{"id":8,"urls":["a"]}]"#).contains("no usable"));
        assert!(message(&format!("[{SET},{SET}]")).contains("twice"));
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        assert!(worldwide(&format!("\u{feff}[{SET}]")).is_ok());
    }
}
