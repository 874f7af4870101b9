//! Plots of a report, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::report::{Report, Row};

const SIZE: (u32, u32) = (900, 480);
const COLOURS: [RGBColor; 3] = [BLUE, RED, BLACK];

/// Draws what there is to draw.
pub(crate) fn draw(report: &Report, directory: &Path) -> Result<()> {
    for family in ["IPv4", "IPv6"] {
        let file = directory.join(format!("lookup-{}.svg", family.to_lowercase()));
        lookup(report, family, &file)
            .map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))?;
    }
    let rows = report.rows.iter().filter(|row| row.part == "forward");
    for (number, row) in rows.enumerate() {
        let file = directory.join(format!("forward-{}.svg", number + 1));
        bars(row, &file).map_err(|error| anyhow!("cannot draw {}: {error}", file.display()))?;
    }
    Ok(())
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// The lookup by the number of prefixes, with half of the destinations covered.
fn lookup(report: &Report, family: &str, file: &Path) -> Drawn {
    let counts = [("100", 1e2), ("10k", 1e4), ("100k", 1e5), ("1M", 1e6)];
    let points = |subject: usize| -> Vec<(f64, f64)> {
        let points = counts.iter().filter_map(|(label, count)| {
            let case = format!("{family}, {label}, 50 % hits");
            let row = report
                .rows
                .iter()
                .find(|row| row.part == "lookup" && row.case == case)?;
            Some((*count, row.values[subject].1.median))
        });
        points.collect()
    };
    if points(0).is_empty() {
        return Ok(());
    }
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(
            format!("{family} lookup, 65,536 destinations, half of them covered"),
            ("sans-serif", 20),
        )
        .margin(15)
        .x_label_area_size(45)
        .y_label_area_size(60)
        .build_cartesian_2d((1e2..1e6).log_scale(), (1.0..3e3).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("prefixes")
        .y_desc("ns, net of the loop")
        .draw()?;
    for (subject, name) in ["Breakout", "LPM_TRIE"].into_iter().enumerate() {
        let colour = COLOURS[subject];
        chart
            .draw_series(LineSeries::new(points(subject), colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}

/// One bar for each subject of a row.
fn bars(row: &Row, file: &Path) -> Drawn {
    let most = row
        .values
        .iter()
        .map(|(_, spread)| spread.median)
        .fold(0.0, f64::max);
    let count = i32::try_from(row.values.len())?;
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{} ({})", row.case, row.unit), ("sans-serif", 20))
        .margin(15)
        .x_label_area_size(35)
        .build_cartesian_2d(0.0..most * 1.5, 0..count)?;
    chart
        .configure_mesh()
        .disable_y_axis()
        .disable_y_mesh()
        .draw()?;
    for (place, (name, spread)) in (0..count).rev().zip(&row.values) {
        let colour = if name.starts_with("Breakout") {
            BLUE
        } else {
            RGBColor(150, 150, 150)
        };
        let mut bar = Rectangle::new([(0.0, place), (spread.median, place + 1)], colour.filled());
        bar.set_margin(6, 6, 0, 0);
        chart.draw_series([bar])?;
        let label = format!("  {name}: {:.2}", spread.median);
        chart.draw_series([Text::new(
            label,
            (spread.median, place + 1),
            ("sans-serif", 15),
        )])?;
    }
    area.present()?;
    Ok(())
}
