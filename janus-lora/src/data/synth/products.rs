//! What the products of the creative pictures are made of: forms painted one over the other. Lengths are in parts of half
//! the product's height, from its middle; light falls from the left.

use image::RgbImage;

use super::draw::{Color, Point, depth_in_ellipse, depth_in_rectangle, inside, length, paint};

/// A product.
pub(super) struct Product {
    pub(super) name: &'static str,
    /// What has the accent colour.
    pub(super) part: &'static str,
    layers: &'static [Layer],
}

pub(super) const PRODUCTS: [Product; 5] = [
    Product { name: "bottle", part: "label", layers: BOTTLE },
    Product { name: "can", part: "band", layers: CAN },
    Product { name: "box", part: "ribbon", layers: BOX },
    Product { name: "cup", part: "band", layers: CUP },
    Product { name: "jar", part: "lid", layers: JAR },
];

/// The ink, how much of it, and where.
type Layer = (Ink, f64, Form);

#[derive(Clone, Copy)]
enum Ink {
    Main,
    Accent,
    Black,
    Grey,
    White,
}

#[derive(Clone, Copy)]
enum Form {
    /// Left, top, right, bottom, and the radius of the corners.
    Rectangle([f64; 4], f64),
    /// Middle, and half of width and height.
    Ellipse(Point, Point),
    /// Middle, radius, and half the thickness.
    Ring(Point, f64, f64),
    /// Convex, its corners clockwise.
    Polygon(&'static [Point]),
}

use Form::{Ellipse, Polygon, Rectangle, Ring};
use Ink::{Accent, Black, Grey, Main, White};

const SHADOW: Layer = (Black, 0.25, Ellipse((0.0, 0.93), (0.85, 0.12)));

const BOTTLE: &[Layer] = &[
    (Main, 1.0, Rectangle([-0.14, -0.95, 0.14, 0.0], 0.03)),
    (Main, 1.0, Ellipse((0.0, -0.2), (0.38, 0.32))),
    (Main, 1.0, Rectangle([-0.38, -0.22, 0.38, 0.95], 0.08)),
    (Accent, 1.0, Rectangle([-0.38, 0.1, 0.38, 0.62], 0.0)),
    (Black, 0.8, Rectangle([-0.17, -1.0, 0.17, -0.84], 0.03)),
    (Black, 0.25, Rectangle([0.18, -0.2, 0.38, 0.95], 0.08)),
    (White, 0.4, Rectangle([-0.3, -0.15, -0.22, 0.88], 0.03)),
];

const CAN: &[Layer] = &[
    (Main, 1.0, Ellipse((0.0, 0.8), (0.5, 0.13))),
    (Main, 1.0, Rectangle([-0.5, -0.78, 0.5, 0.8], 0.0)),
    (Accent, 1.0, Rectangle([-0.5, -0.2, 0.5, 0.3], 0.0)),
    (Black, 0.25, Rectangle([0.24, -0.78, 0.5, 0.84], 0.0)),
    (White, 0.4, Rectangle([-0.38, -0.7, -0.28, 0.82], 0.03)),
    (Grey, 1.0, Ellipse((0.0, -0.78), (0.5, 0.13))),
    (Black, 0.4, Ellipse((0.0, -0.78), (0.2, 0.05))),
];

const BOX_TOP: Form = Polygon(&[(-0.8, -0.4), (-0.45, -0.75), (0.8, -0.75), (0.45, -0.4)]);
const BOX_SIDE: Form = Polygon(&[(0.45, -0.4), (0.8, -0.75), (0.8, 0.55), (0.45, 0.9)]);
const BOX: &[Layer] = &[
    (Main, 1.0, BOX_TOP),
    (White, 0.35, BOX_TOP),
    (Main, 1.0, BOX_SIDE),
    (Black, 0.4, BOX_SIDE),
    (Main, 1.0, Rectangle([-0.8, -0.4, 0.45, 0.9], 0.0)),
    (Accent, 1.0, Rectangle([-0.32, -0.4, -0.03, 0.9], 0.0)),
    (Accent, 1.0, Polygon(&[(-0.32, -0.4), (0.03, -0.75), (0.32, -0.75), (-0.03, -0.4)])),
];

const CUP: &[Layer] = &[
    (Main, 1.0, Ring((0.56, 0.05), 0.3, 0.07)),
    (Main, 1.0, Ellipse((0.0, 0.82), (0.42, 0.09))),
    (Main, 1.0, Polygon(&[(-0.6, -0.55), (0.6, -0.55), (0.42, 0.82), (-0.42, 0.82)])),
    (Accent, 1.0, Polygon(&[(-0.547, -0.15), (0.547, -0.15), (0.481, 0.35), (-0.481, 0.35)])),
    (Black, 0.25, Polygon(&[(0.26, -0.55), (0.6, -0.55), (0.42, 0.84), (0.19, 0.88)])),
    (White, 0.4, Polygon(&[(-0.44, -0.45), (-0.34, -0.45), (-0.25, 0.78), (-0.33, 0.78)])),
    (Main, 1.0, Ellipse((0.0, -0.55), (0.6, 0.13))),
    (Black, 0.45, Ellipse((0.0, -0.55), (0.53, 0.1))),
];

const JAR: &[Layer] = &[
    (Main, 1.0, Rectangle([-0.62, -0.5, 0.62, 0.95], 0.22)),
    (Black, 0.25, Rectangle([0.32, -0.48, 0.62, 0.95], 0.2)),
    (White, 0.4, Rectangle([-0.5, -0.32, -0.39, 0.78], 0.05)),
    (Accent, 1.0, Rectangle([-0.5, -0.88, 0.5, -0.45], 0.06)),
    (Black, 0.3, Rectangle([-0.5, -0.52, 0.5, -0.45], 0.0)),
];

impl Form {
    /// How far within the form a point is.
    fn depth(self, (x, y): Point) -> f64 {
        match self {
            Rectangle(edges, corner) => depth_in_rectangle((x, y), edges, corner),
            Ellipse(middle, radii) => depth_in_ellipse((x - middle.0, y - middle.1), radii),
            Ring(middle, radius, thickness) => thickness - (length((x - middle.0, y - middle.1)) - radius).abs(),
            Polygon(corners) => {
                let ends = corners.iter().zip(corners.iter().cycle().skip(1));
                let depths = ends.map(|(a, b)| {
                    let (across, down) = (b.0 - a.0, b.1 - a.1);
                    (across * (y - a.1) - down * (x - a.0)) / length((across, down))
                });
                depths.fold(f64::MAX, f64::min)
            }
        }
    }
}

impl Product {
    /// Paints it about `centre`, so high above and below.
    pub(super) fn paint(&self, image: &mut RgbImage, centre: Point, half_height: f64, main: Color, accent: Color) {
        for &(ink, strength, form) in std::iter::once(&SHADOW).chain(self.layers) {
            let color = match ink {
                Main => main,
                Accent => accent,
                Black => [0.0; 3],
                Grey => [185.0, 185.0, 190.0],
                White => [255.0; 3],
            };
            paint(image, centre, 1.2 * half_height, color, |(x, y)| {
                strength * inside(half_height * form.depth((x / half_height, y / half_height)))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_have_all_their_inks_and_stay_in_reach() {
        for Product { name, layers, .. } in &PRODUCTS {
            for ink in [Main, Accent] {
                let painted =
                    layers.iter().any(|(other, _, _)| matches!((ink, other), (Main, Main) | (Accent, Accent)));
                assert!(painted, "{name}");
            }
            for (_, _, form) in *layers {
                let edge = (-100..=100).map(|step| f64::from(step) / 100.0 * 1.05);
                for at in edge {
                    for point in [(at, -1.05), (at, 1.05), (-1.05, at), (1.05, at)] {
                        assert!(form.depth(point) < 0.0, "{name} reaches {point:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn forms_are_deep_inside_and_not_outside() {
        for form in [
            Rectangle([-0.5, -0.4, 0.3, 0.6], 0.1),
            Ellipse((-0.1, 0.1), (0.4, 0.5)),
            Polygon(&[(-0.5, -0.4), (0.3, -0.4), (0.3, 0.6), (-0.5, 0.6)]),
        ] {
            assert!((form.depth((-0.1, 0.1)) - 0.4).abs() < 1e-9);
            assert!((form.depth((-0.1, 0.1)) > form.depth((0.2, 0.1))) && form.depth((0.2, 0.1)) > 0.0);
            assert!(form.depth((0.35, 0.1)) < 0.0 && form.depth((-0.1, 0.65)) < 0.0);
        }
        let ring = Ring((0.0, 0.0), 0.5, 0.1);
        assert!(ring.depth((0.5, 0.0)) > 0.0 && ring.depth((0.0, 0.0)) < 0.0 && ring.depth((0.0, 0.7)) < 0.0);
    }
}
