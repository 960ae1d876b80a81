"""Pages as the tests drive them: what went wrong on them, what they asked for, and our viewer's state and pixels."""

import time

PATIENCE = 300_000  # ms, on a machine without GPU, busy with other tests


class Watched:
    """A page of a browser, what went wrong on it (`wrong`), and which addresses it asked for (`asked`)."""

    def __init__(self, chromium, size=(1000, 620), **options):
        self.page = chromium.new_page(viewport={"width": size[0], "height": size[1]}, **options)
        self.page.set_default_timeout(PATIENCE)
        self.wrong, self.asked = [], []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.on("request", lambda request: self.asked.append(request.url))

    def elsewhere(self, address):
        """The addresses asked for that are not below this one."""
        return [url for url in self.asked if not url.startswith((address, "data:", "blob:"))]


class Viewer(Watched):
    """Our viewer, opened and ready."""

    def __init__(self, chromium, url, size=(1000, 620), **options):
        super().__init__(chromium, size, **options)
        self.page.goto(url)
        self.page.wait_for_selector("html[data-ready]", state="attached")

    def run(self, code):
        """The value of an expression, when what it awaits is done; `app` is the page's own."""
        return self.page.evaluate(f"async () => {{ const app = window.Voxplain.app; return {code}; }}")

    def state(self, name):
        return self.run(f"app.state.{name}")

    def settled(self):
        self.run("(await app.refresh(), await new Promise((done) => setTimeout(done, 50)))")

    def until(self, code):
        """Wait until an expression is true; Playwright's own way needs `eval`, which our policy forbids."""
        end = time.monotonic() + PATIENCE / 1000
        while not self.run(code):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {code}")
            time.sleep(0.05)

    def press(self, key):
        self.page.keyboard.press(key)
        self.settled()

    def click(self, word, **options):
        self.page.click(f'[data-word="{word}"]', **options)
        self.settled()

    def tile(self, number=0, pane="pane-left"):
        """Left, top, width and height of a plane on the screen."""
        stage = "stage" if pane == "pane-left" else "other"
        facts = self.run(f"(({{left, top, width, height}}) => [left, top, width, height])(app.{stage}.tiles[{number}])")
        box = self.page.locator(f"#{pane} canvas.gl").bounding_box()
        return box["x"] + facts[0], box["y"] + facts[1], *facts[2:]

    def colored(self, stage="stage"):
        """How many pixels of a stage are not gray; read right after painting, while the buffer still holds them."""
        return self.run(
            f"""(() => {{
              const stage = app.{stage};
              stage.nv.drawScene();
              const gl = stage.nv.gl;
              const pixels = new Uint8Array(4 * gl.drawingBufferWidth * gl.drawingBufferHeight);
              gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
              let count = 0;
              for (let n = 0; n < pixels.length; n += 4)
                count += Math.max(...pixels.subarray(n, n + 3)) - Math.min(...pixels.subarray(n, n + 3)) > 24;
              return count;
            }})()"""
        )
