/** Pictures: decode a file upright, and get at its pixels, as `mien.faces.open_picture` does. */

export const MAX_PIXELS = 178_956_970; // the largest picture that is decoded, as in Python

const STRIP = 4_000_000; // pixels of a canvas: telephones allow no more than 16 million

/** What stands in the way of reading, in words for a person. */
export class ReadError extends Error {}

/** An ImageBitmap of the file, turned upright as its EXIF says, its numbers left as they are whatever its profile says. */
export async function openPicture(file) {
  const name = file.name ? `${file.name}: ` : "";
  if (!file.size) throw new ReadError(`${name}an empty file`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new ReadError(`${name}not a picture that this browser can read`);
  }
  if (bitmap.width * bitmap.height > MAX_PIXELS) {
    throw new ReadError(`${name}${bitmap.width}×${bitmap.height}, more than ${Math.floor(MAX_PIXELS / 1e6)} million pixels`);
  }
  return bitmap;
}

/** {width, height, data} of an ImageBitmap or a video's frame: data a Uint8Array of RGB; transparency is laid on white. */
export function pixels(source, width, height) {
  const data = new Uint8Array(3 * width * height);
  const rows = Math.max(1, Math.floor(STRIP / width));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, Math.min(rows, height)];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.fillStyle = "white";
  for (let top = 0, to = 0; top < height; top += rows) {
    const high = Math.min(rows, height - top);
    context.fillRect(0, 0, width, high);
    context.drawImage(source, 0, top, width, high, 0, 0, width, high);
    const { data: rgba } = context.getImageData(0, 0, width, high);
    for (let from = 0; from < rgba.length; from += 4) {
      data[to++] = rgba[from];
      data[to++] = rgba[from + 1];
      data[to++] = rgba[from + 2];
    }
  }
  return { width, height, data };
}

/** Whether this browser tells pages other pixels than there are, so that they cannot know it again by its canvas. */
export function isScrambled() {
  const side = 16;
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const colours = context.createImageData(side, side);
  colours.data.forEach((_, i) => (colours.data[i] = i % 4 === 3 ? 255 : (i * 37) % 256));
  context.putImageData(colours, 0, 0);
  return context.getImageData(0, 0, side, side).data.some((value, i) => value !== colours.data[i]);
}
