//! The figures as a picture: both axes logarithmic, a line for each kind of work.

use std::path::Path;

use anyhow::{Context as _, Result};
use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, SeriesLabelPosition};
use plotters::coord::combinators::IntoLogRange as _;
use plotters::drawing::IntoDrawingArea as _;
use plotters::element::PathElement;
use plotters::series::LineSeries;
use plotters::style::{Color as _, RGBColor, WHITE};

use crate::Row;

const FONT: (&str, u32) = ("sans-serif", 16);

/// What it is, its colour (Okabe and Ito: told apart by the colour-blind, too), and its
/// figure in milliseconds.
type Line = (&'static str, RGBColor, fn(&Row) -> f64);

const LINES: [Line; 6] = [
    ("cold sync", RGBColor(213, 94, 0), |row| row.syncs.cold),
    ("its floor", RGBColor(240, 180, 140), |row| {
        row.syncs.cold_floor
    }),
    ("restart", RGBColor(230, 159, 0), |row| row.syncs.restart),
    ("connect through a Service", RGBColor(0, 158, 115), |row| {
        row.connections.latency.through_service / 1e3
    }),
    ("connect directly", RGBColor(150, 150, 150), |row| {
        row.connections.latency.direct / 1e3
    }),
    ("one endpoint changed", RGBColor(0, 114, 178), |row| {
        row.syncs.changed
    }),
];

/// Draws rows in the order of their sizes.
pub(crate) fn draw(path: &Path, rows: &[&Row]) -> Result<()> {
    let sizes = || rows.iter().map(|row| f64::from(row.services));
    let times = || rows.iter().flat_map(|row| LINES.map(|(_, _, of)| of(row)));
    let largest = sizes().fold(1.0, f64::max);
    let smallest = sizes().fold(largest, f64::min);
    let (low, high) = times().fold((f64::INFINITY, 0.0), |(low, high), time| {
        (f64::min(low, time), f64::max(high, time))
    });
    let decade = |value: f64, round: fn(f64) -> f64| 10f64.powf(round(value.log10()));

    let image = SVGBackend::new(path, (800, 480)).into_drawing_area();
    image.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&image)
        .margin(15)
        .x_label_area_size(45)
        .y_label_area_size(70)
        .build_cartesian_2d(
            (smallest..largest).log_scale(),
            (decade(low, f64::floor)..decade(high, f64::ceil)).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("Services with 3 endpoints each")
        .y_desc("milliseconds")
        .x_label_formatter(&f64::to_string)
        .y_label_formatter(&f64::to_string)
        .light_line_style(WHITE)
        .label_style(FONT)
        .axis_desc_style(FONT)
        .draw()?;
    for (name, colour, of) in LINES {
        let points = rows.iter().map(|row| (f64::from(row.services), of(row)));
        let line = LineSeries::new(points, colour.stroke_width(2)).point_size(3);
        chart
            .draw_series(line)?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font(FONT)
        .draw()?;
    image
        .present()
        .with_context(|| format!("cannot write {}", path.display()))
}
