//! Reading a response of the web service, as saved by curl.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use breakout_common::table::Transport;
use ipnet::IpNet;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::row::Row;
use super::{
    Category, EndpointSet, Hash, Instance, List, PortRange, Problem, SetKey, Severity, canonical,
    parse_ports,
};
use crate::memory;
use crate::plain::{into_plain, plain, short};
use crate::text::decode;

/// The largest file that is read as a list. The real ones are below 100 KiB.
const MAX_FILE: u64 = 64 << 20;

/// Memory that a byte of a list takes, where it is one of many prefixes: up to the table in the kernel.
const MEMORY_PER_BYTE: u64 = 30;

/// The most rows that a list may have. The real ones have about a hundred.
const MAX_ROWS: usize = 65_536;

/// As many characters of a text from outside are shown, or kept of a name.
const MAX_TEXT: usize = 200;

/// As many problems are told of; a damaged file can have millions.
const MAX_PROBLEMS: usize = 200;

/// Error of a text that is no list.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// The file could not be read.
    #[error("cannot read the list {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        error: std::io::Error,
    },
    /// The file is too large to be a list.
    #[error(
        "{source_name} is {size} bytes long; no list is larger than {MAX_FILE}. Is it the right file?"
    )]
    TooLarge {
        /// Source of the text.
        source_name: String,
        /// Its size in bytes.
        size: u64,
    },
    /// It is a web page.
    #[error(
        "{0} is an HTML page, not a list. A proxy's log-in or error page was probably saved in its place; \
         fetch it again, past the proxy"
    )]
    Html(String),
    /// It ends too early.
    #[error("{0} is cut off: {1}. Fetch it again")]
    CutOff(String, serde_json::Error),
    /// It is no JSON array of endpoint sets.
    #[error("{0} is no response of the endpoints web service: {1}")]
    Json(String, String),
    /// It is JSON, but holds nothing to steer by.
    #[error(
        "{0} has no usable endpoint set: none of its {1} sets has both addresses and ports. \
         Expected the answer of /endpoints/INSTANCE"
    )]
    Empty(String, usize),
    /// Its bytes are no text.
    #[error("{0} is no text: {1}")]
    Encoding(String, String),
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
    let too_large = |size| ParseError::TooLarge {
        source_name: path.display().to_string(),
        size,
    };
    if size > MAX_FILE {
        return Err(too_large(size));
    }
    memory::require(size * MEMORY_PER_BYTE, || path.display().to_string())
        .map_err(|error| read_error(std::io::Error::other(format!("{error:#}"))))?;
    // What is no file has no size, and may have no end.
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(read_error)?;
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    match bytes.len() as u64 {
        size if size > MAX_FILE => Err(too_large(size)),
        _ => Ok(bytes),
    }
}

/// Parses the answer of `/endpoints/INSTANCE`, in UTF-8 or UTF-16. `source_name` says in errors where it came from.
///
/// A row that cannot be read costs that row, and what is wrong inside a row that part of it; both become a [`Problem`]. Rows with
/// one id are one set if they say the same of its addresses and ports; else the first holds, and the list is contradictory.
///
/// # Errors
///
/// When the text is not such an answer as a whole, or has no usable endpoint set.
pub fn parse(text: &[u8], instance: Instance, source_name: &str) -> Result<List, ParseError> {
    let name = || plain(source_name).into_owned();
    let text = decode(text).map_err(|problem| ParseError::Encoding(name(), problem))?;
    if text.trim_ascii_start().starts_with('<') {
        return Err(ParseError::Html(name()));
    }
    let mut reader = Reader {
        instance,
        rows: 0,
        sets: Vec::new(),
        places: BTreeMap::new(),
        twins: BTreeMap::new(),
        problems: Problems::default(),
    };
    let mut json = serde_json::Deserializer::from_str(&text);
    let read = json.deserialize_seq(&mut reader).and_then(|()| json.end());
    read.map_err(|error| {
        if error.is_eof() {
            ParseError::CutOff(name(), error)
        } else {
            ParseError::Json(name(), short(&error.to_string(), MAX_TEXT))
        }
    })?;
    if !reader.sets.iter().any(EndpointSet::is_usable) {
        return Err(ParseError::Empty(name(), reader.rows));
    }
    Ok(List {
        instance,
        version: None,
        source: name(),
        fetched: None,
        record: None,
        sets: reader.sets,
        problems: reader.problems.finish(),
        pending: Vec::new(),
        hash: Hash::default(),
    })
}

/// Problems, as many as are told of.
#[derive(Default)]
struct Problems {
    told: Vec<Problem>,
    more: usize,
    worst: Option<Severity>,
}

impl Problems {
    fn report(&mut self, id: Option<u32>, severity: Severity, problem: String) {
        if self.told.len() < MAX_PROBLEMS {
            self.told.push(Problem {
                id,
                problem: short(&problem, MAX_TEXT),
                severity,
            });
        } else {
            self.more += 1;
            self.worst = self.worst.max(Some(severity));
        }
    }

    fn finish(mut self) -> Vec<Problem> {
        if let Some(worst) = self.worst {
            // It is not known any more which sets they are about.
            let severity = match worst {
                Severity::Useless => Severity::Useless,
                Severity::Damaged | Severity::Contradictory => Severity::Contradictory,
            };
            self.told.push(Problem {
                id: None,
                problem: format!("there are {} problems more", self.more),
                severity,
            });
        }
        self.told
    }
}

/// Reads a list row by row, so that no more of it is in memory than what it comes to.
struct Reader {
    instance: Instance,
    rows: usize,
    sets: Vec<EndpointSet>,
    /// The place of each id in `sets`.
    places: BTreeMap<u32, usize>,
    /// Content of the sets that have come twice, and their URLs.
    twins: BTreeMap<u32, (String, HashSet<String>)>,
    problems: Problems,
}

impl<'de> Visitor<'de> for &mut Reader {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of endpoint sets")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        while let Some(row) = rows.next_element::<&RawValue>()? {
            self.rows += 1;
            if self.rows > MAX_ROWS {
                return Err(A::Error::custom(format!(
                    "it has more than {MAX_ROWS} rows"
                )));
            }
            self.row(row.get());
        }
        Ok(())
    }
}

impl Reader {
    fn row(&mut self, text: &str) {
        // A list would be read as the fields of a row in their order.
        let row = match text.starts_with('{') {
            true => serde_json::from_str(text).map_err(|error| error.to_string()),
            false => Err("it is no object".to_owned()),
        };
        let row: Row = match row {
            Ok(row) => row,
            Err(error) => {
                let problem = format!("row {} cannot be understood: {error}", self.rows);
                let id = super::row::id_of(text);
                return self.problems.report(id, Severity::Damaged, problem);
            }
        };
        let set = endpoint_set(row, self.instance, &mut self.problems);
        let Some(id) = set.key.id() else { return };
        match self.places.entry(id) {
            Entry::Vacant(place) => {
                place.insert(self.sets.len());
                self.sets.push(set);
            }
            Entry::Occupied(place) => {
                let place = *place.get();
                if !self.merge(id, place, set) {
                    let problem = "is there twice, with different content; the first one is taken";
                    self.problems
                        .report(Some(id), Severity::Contradictory, problem.to_owned());
                }
            }
        }
    }

    /// Takes the names of a further row into the first, if they say the same of everything else.
    fn merge(&mut self, id: u32, place: usize, mut further: EndpointSet) -> bool {
        let first = &mut self.sets[place];
        let (content, urls) = self.twins.entry(id).or_insert_with(|| {
            let urls = std::mem::take(&mut first.urls);
            let content = canonical(first);
            first.urls = urls;
            (content, first.urls.iter().cloned().collect())
        });
        let further_urls = std::mem::take(&mut further.urls);
        if *content != canonical(&further) {
            return false;
        }
        for url in further_urls {
            if urls.insert(url.clone()) {
                first.urls.push(url);
            }
        }
        true
    }
}

fn endpoint_set(row: Row, instance: Instance, problems: &mut Problems) -> EndpointSet {
    let id = row.id;
    let mut report = |problem: String, severity| problems.report(Some(id), severity, problem);
    let ips = row.ips.unwrap_or_default();
    let mut prefixes = Vec::with_capacity(ips.len());
    for text in &ips {
        match parse_prefix(text) {
            Ok(prefix) => prefixes.push(prefix),
            // That is no mistake of writing.
            Err(problem) if has_no_length(text) => report(problem, Severity::Contradictory),
            Err(problem) => report(problem, Severity::Damaged),
        }
    }
    let mut ports: Vec<PortRange> = Vec::new();
    for (transport, text) in [
        (Transport::Tcp, row.tcp_ports),
        (Transport::Udp, row.udp_ports),
    ] {
        match parse_ports(transport, &text.unwrap_or_default()) {
            Ok(ranges) => ports.extend(ranges),
            Err(problem) => report(problem, Severity::Damaged),
        }
    }
    if !prefixes.is_empty() && ports.is_empty() {
        report(
            "has addresses but no ports, so it cannot be matched exactly".to_owned(),
            Severity::Useless,
        );
    }
    let name = |text: Option<String>| short(&text.unwrap_or_default(), MAX_TEXT);
    let category = name(row.category);
    let category = Category::from(category.as_str());
    if let Category::Other(name) = &category
        && !prefixes.is_empty()
    {
        let problem = format!("category \"{name}\" is not known, so it is not steered");
        report(problem, Severity::Useless);
    }
    let urls = row.urls.unwrap_or_default();
    EndpointSet {
        key: SetKey::published(instance, id),
        service_area: name(row.service_area),
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
    let shown = || short(text, 60);
    // An address with leading zeros is read as octal by some, and as decimal by others.
    let address = text.split('/').next().unwrap_or_default();
    let address: IpAddr = address
        .parse()
        .map_err(|_| format!("\"{}\" is no IP prefix", shown()))?;
    let prefix: IpNet = match text.contains('/') {
        true => text
            .parse()
            .map_err(|_| format!("\"{}\" is no IP prefix", shown()))?,
        false => address.into(),
    };
    if prefix.network() != prefix.addr() {
        return Err(format!(
            "\"{}\" has address bits beyond its prefix length; the network is {}, the address alone {}",
            shown(),
            prefix.trunc(),
            prefix.addr()
        ));
    }
    if prefix.prefix_len() == 0 {
        return Err(format!("\"{}\" covers every address", shown()));
    }
    Ok(prefix)
}

/// Tells a prefix of length 0, in whatever way it is written.
fn has_no_length(text: &str) -> bool {
    let length = text
        .split_once('/')
        .map(|(_, length)| length.trim().parse());
    length == Some(Ok(0u8))
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
        assert!(
            message(&format!("[{SET},{}]", vec!["null"; MAX_ROWS].join(",")))
                .contains("65536 rows")
        );
        assert!(message("[\u{0}]\u{fffe}").contains("no response"));
    }

    #[test]
    fn a_bad_row_costs_that_row() {
        let list = worldwide(&format!(
            r#"[null,{SET},{{"id":"11","ips":["52.112.0.0/14"],"udpPorts":"3478"}},{{"id":12.0,"required":null}},
            {{"id":13,"required":"perhaps"}},{{"id":-1}},{{"id":"x"}},[],7]"#
        ))
        .unwrap();
        let ids: Vec<Option<u32>> = list.sets.iter().map(|set| set.key.id()).collect();
        assert_eq!(ids, [Some(1), Some(11), Some(12)]);
        let texts: Vec<(Option<u32>, &str)> = (list.problems.iter())
            .map(|problem| (problem.id, problem.problem.as_str()))
            .collect();
        let of = |row: &str| {
            let mut texts = texts.iter();
            texts
                .find(|(_, text)| text.starts_with(row))
                .map(|(id, _)| *id)
        };
        assert_eq!(of("row 1 "), Some(None), "{texts:?}");
        assert_eq!(of("row 5 "), Some(Some(13)), "{texts:?}");
        assert_eq!(
            texts
                .iter()
                .filter(|(_, text)| text.starts_with("row "))
                .count(),
            6
        );
    }

    #[test]
    fn rows_with_one_id_are_one_set_or_a_contradiction() {
        let named = SET.replace("\"category\"", "\"urls\":[\"a.example\"],\"category\"");
        let list = worldwide(&format!("[{SET},{named},{SET}]")).unwrap();
        assert_eq!((list.sets.len(), list.problems.len()), (1, 0));
        assert_eq!(list.sets[0].urls, ["a.example"]);
        let other = SET.replace("40.96.0.0/13", "40.104.0.0/15");
        let list = worldwide(&format!("[{SET},{other}]")).unwrap();
        assert_eq!(list.sets.len(), 1);
        assert_eq!(list.problems[0].severity, Severity::Contradictory);
        assert!(list.problems[0].problem.contains("twice"));
    }

    #[test]
    fn a_million_problems_are_counted() {
        let rows = vec!["null"; 50_000].join(",");
        let list = worldwide(&format!("[{SET},{rows}]")).unwrap();
        assert_eq!(list.problems.len(), MAX_PROBLEMS + 1);
        let last = list.problems.last().unwrap();
        assert_eq!(last.problem, "there are 49800 problems more");
        assert_eq!(last.severity, Severity::Contradictory);
    }

    #[test]
    fn every_encoding_is_read() {
        assert!(worldwide(&format!("\u{feff}[{SET}]")).is_ok());
        let units: Vec<u8> = format!("\u{feff}[{SET}]")
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        assert!(parse(&units, Instance::Worldwide, "saved.json").is_ok());
    }
}
