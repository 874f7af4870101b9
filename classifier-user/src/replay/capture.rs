//! Captures as tcpdump, Wireshark and the like write them: pcap and pcapng.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError, create_reader};

use super::link;

/// Bytes that are read at once; a block that is longer makes it more, up to [`MAX_BUFFER`].
const BUFFER: usize = 1 << 16;
/// The longest block that is read.
const MAX_BUFFER: usize = 1 << 26;

/// One packet, as an Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// The bytes that were captured.
    pub bytes: Vec<u8>,
    /// The frame's length in bytes, of which the capture may have fewer.
    pub len: u32,
}

/// A capture that is being read.
pub struct Capture {
    reader: Box<dyn PcapReaderIterator>,
    /// The link type of each interface; a pcap file has one.
    links: Vec<Linktype>,
    /// Bytes that it can hold.
    buffer: usize,
    /// Bytes read so far.
    position: u64,
    ended: bool,
}

impl Capture {
    /// Opens a capture.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is no capture.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Self::read(file).with_context(|| format!("{} is no capture", path.display()))
    }

    /// Reads a capture.
    ///
    /// # Errors
    ///
    /// When it is neither pcap nor pcapng.
    pub fn read(input: impl Read + Send + 'static) -> Result<Self> {
        let reader = create_reader(BUFFER, input).map_err(|error| match error {
            PcapError::Eof | PcapError::Incomplete(_) => {
                anyhow!("it is empty or cut off in its header")
            }
            PcapError::ReadError => anyhow!("it cannot be read"),
            _ => anyhow!("it is neither pcap nor pcapng; save it with tcpdump -w or Wireshark"),
        })?;
        Ok(Capture {
            reader,
            links: Vec::new(),
            buffer: BUFFER,
            position: 0,
            ended: false,
        })
    }

    /// Returns how many bytes of the file have been read.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next packet, or `None` at the end.
    ///
    /// # Errors
    ///
    /// When the capture is damaged here, or has a link type that is not known. There is nothing more to read then.
    pub fn packet(&mut self) -> Result<Option<Captured>> {
        while !self.ended {
            match self.block() {
                Ok(Some(packet)) => return Ok(Some(packet)),
                Ok(None) => {}
                Err(error) => {
                    self.ended = true;
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// Reads one block, which may be a packet.
    fn block(&mut self) -> Result<Option<Captured>> {
        let (length, packet) = match self.reader.next() {
            Ok((length, block)) => (length, packet_in(&block, &mut self.links)),
            Err(PcapError::Eof) => {
                self.ended = true;
                return Ok(None);
            }
            Err(PcapError::Incomplete(_)) => {
                self.refill()?;
                return Ok(None);
            }
            Err(PcapError::BufferTooSmall) => {
                self.grow()?;
                return Ok(None);
            }
            Err(PcapError::UnexpectedEof) => {
                bail!("the capture is cut off after byte {}", self.position)
            }
            Err(error) => bail!(
                "the capture is damaged after byte {}: {}",
                self.position,
                reason(&error)
            ),
        };
        self.reader.consume(length);
        self.position += length as u64;
        packet.with_context(|| format!("in the block that ends with byte {}", self.position))
    }

    fn refill(&mut self) -> Result<()> {
        let position = self.position;
        self.reader
            .refill()
            .map_err(|error| anyhow!("cannot read on after byte {position}: {}", reason(&error)))
    }

    /// Makes room for a block that is longer than those before.
    fn grow(&mut self) -> Result<()> {
        if self.reader.reader_exhausted() {
            bail!("the capture is cut off after byte {}", self.position);
        }
        self.buffer *= 2;
        if self.buffer > MAX_BUFFER || !self.reader.grow(self.buffer) {
            bail!(
                "the capture is damaged after byte {}: a block of more than {MAX_BUFFER} bytes",
                self.position
            );
        }
        Ok(())
    }
}

/// The packet in a block. Others tell of the interfaces, or of nothing that matters here.
fn packet_in(block: &PcapBlockOwned<'_>, links: &mut Vec<Linktype>) -> Result<Option<Captured>> {
    let (interface, bytes, len) = match block {
        PcapBlockOwned::LegacyHeader(header) => {
            links.push(header.network);
            return Ok(None);
        }
        PcapBlockOwned::NG(Block::SectionHeader(_)) => {
            links.clear();
            return Ok(None);
        }
        PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
            links.push(interface.linktype);
            return Ok(None);
        }
        PcapBlockOwned::Legacy(packet) => (0, packet.data, packet.origlen),
        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
            (packet.if_id, packet.packet_data(), packet.origlen)
        }
        PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
            (0, packet.packet_data(), packet.origlen)
        }
        PcapBlockOwned::NG(_) => return Ok(None),
    };
    let link = links
        .get(interface as usize)
        .with_context(|| format!("a packet of interface {interface}, which is not described"))?;
    link::to_ethernet(*link, bytes, len).map(Some)
}

fn reason(error: &PcapError<&[u8]>) -> String {
    match error {
        PcapError::ReadError => "the file cannot be read".to_owned(),
        PcapError::HeaderNotRecognized => "a block has an unknown header".to_owned(),
        _ => "a block contradicts itself".to_owned(),
    }
}
