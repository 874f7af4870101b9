//! `breakout top`: what the controller does, as it does it.

mod model;
mod view;

use std::io::{IsTerminal, stdin, stdout};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow};
use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures_util::StreamExt;
use ratatui::DefaultTerminal;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use crate::control::{Client, EventsQuery, Stats, Status, in_time};
use crate::events;
use crate::exit::{Code, WithCode};
use model::Model;

/// Events that are kept to be scrolled through.
const EVENTS: usize = 200;
/// Time that the controller may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything that is asked for in one turn.
struct Answer {
    status: Status,
    stats: Stats,
    events: Vec<events::Event>,
}

/// Shows the controller until the operator has seen enough. The terminal is left as it was, also after a signal.
pub(super) async fn top(socket: &Path, every: Duration) -> Result<()> {
    if !stdout().is_terminal() || !stdin().is_terminal() {
        return Err(anyhow!(
            "breakout top needs a terminal; use: breakout status --json, breakout stats --json"
        ))
        .code(Code::Usage);
    }
    let mut signals = Signals::new()?;
    // A controller that is not there at the start is a mistake; one that goes away later may come back.
    let source = Source {
        socket: socket.to_owned(),
        client: Some(Client::connect(socket).await.map_err(|error| {
            let code = error.code();
            crate::exit::coded(error.into(), code)
        })?),
    };
    let mut model = Model::new(std::env::var_os("NO_COLOR").is_none());
    let mut answers = source.ask_every(every);
    let shown = match ratatui::try_init() {
        Ok(mut terminal) => show(&mut terminal, &mut answers, &mut model, &mut signals).await,
        Err(error) => Err(error.into()),
    };
    ratatui::try_restore()?;
    shown
}

async fn show(
    terminal: &mut DefaultTerminal,
    answers: &mut mpsc::Receiver<Result<Answer>>,
    model: &mut Model,
    signals: &mut Signals,
) -> Result<()> {
    let mut keys = EventStream::new();
    loop {
        terminal.draw(|frame| view::draw(frame, model))?;
        tokio::select! {
            () = signals.wait() => return Ok(()),
            Some(answer) = answers.recv() => match answer {
                _ if model.is_paused() => {}
                Ok(answer) => model.take(answer),
                Err(error) => model.fail(format!("{error:#}")),
            },
            event = keys.next() => match event {
                Some(Ok(Event::Key(key))) if key.kind == KeyEventKind::Press => {
                    if is_end(key) {
                        return Ok(());
                    }
                    model.press(key.code);
                }
                Some(Ok(_)) => {}
                // The terminal is gone.
                Some(Err(_)) | None => return Ok(()),
            },
        }
    }
}

fn is_end(key: KeyEvent) -> bool {
    let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
}

/// The signals that would end the program and leave the terminal as it must not be left.
struct Signals {
    terminate: Signal,
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.quit.recv() => {}
        }
    }
}

/// The controller, which may be restarted meanwhile.
struct Source {
    socket: PathBuf,
    client: Option<Client>,
}

impl Source {
    /// Asks again and again, beside the screen: a controller that does not answer shall not keep keys waiting.
    fn ask_every(mut self, every: Duration) -> mpsc::Receiver<Result<Answer>> {
        let (sender, answers) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut turn = interval(every);
            turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                turn.tick().await;
                let answer = in_time(PATIENCE, self.ask()).await;
                if sender.send(answer).await.is_err() {
                    return;
                }
            }
        });
        answers
    }

    async fn ask(&mut self) -> Result<Answer> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(&self.socket).await?,
        };
        let status = client.status().await?;
        let stats = client.stats().await?;
        let mut events = client.events(EventsQuery { after: 0 }).await?.events;
        events.drain(..events.len().saturating_sub(EVENTS));
        self.client = Some(client);
        Ok(Answer {
            status,
            stats,
            events,
        })
    }
}
