"""The page of kd-compare: what is in it, and what a real browser makes of it."""
from __future__ import annotations

import json
import re
import shutil

import cv2
import numpy as np
import pytest

from kd_cli import compare, html_report
from kd_cli.html_report import worst_and_best
from kd_utils.options import OptionError
from tests.support import EDSR, TEACHER
from tests.test_kd_cli.test_compare import write_experiment

RED, BLUE, GREEN = (0, 0, 200), (200, 0, 0), (0, 160, 0)  # BGR
SIZE = 64


@pytest.fixture
def root(tmp_path, images, monkeypatch):
    """Tested networks whose outputs are of one colour: `alone` red, `distilled` blue; `teacher` has a green pixel."""
    monkeypatch.setattr(compare, 'TIMING_ROUNDS', 3)
    write_experiment(tmp_path, images, 'teacher', TEACHER, [40., 40., 40.], 0)
    write_experiment(tmp_path, images, 'alone', EDSR, [30., 31., 32.], 1)
    write_experiment(tmp_path, images, 'distilled', EDSR, [31., 30., 36.], 1)
    for name, colour in (('teacher', RED), ('alone', RED), ('distilled', BLUE)):
        for i in range(3):
            picture = np.full((SIZE, SIZE, 3), colour, np.uint8)
            if name == 'teacher':
                picture[20, 30] = GREEN
            cv2.imwrite(str(tmp_path / 'results' / name / 'visualization' / 'Tiny' / f'{i}_{name}.png'), picture)
    return tmp_path


def page(root, *flags: str) -> str:
    path = root / 'report.html'
    compare.main(['teacher', 'alone', 'distilled', '--root', str(root), '--size', '8x8', '--html', str(path), *flags])
    return path.read_text(encoding='utf-8')


def data_of(text: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', text).group(1))


def shares(iteration: int, pixel: float) -> str:
    logged = {'pixel': {'norm': 2., 'share': pixel, 'cosine': 1.},
              'response_kd': {'norm': 1., 'share': 1 - pixel, 'cosine': -0.25}}
    return json.dumps({'iter': iteration, 'shares': logged}) + '\n'


def test_the_worst_and_the_best_come_first():
    differences = {'a': 0.1, 'b': -3., 'none': None, 'c': 2., 'd': 0.2, 'e': -1., 'nan': float('nan')}
    assert worst_and_best(differences, 1) == ['b', 'c', 'e', 'd', 'a', 'none', 'nan']
    assert worst_and_best(differences, -1) == ['c', 'b', 'd', 'e', 'a', 'none', 'nan']
    assert worst_and_best({}, 1) == []


def test_the_page_has_the_table_with_intervals_curves_and_shares(root):
    logged = shares(2, 0.5) + shares(4, 0.9) + shares(4, 0.7) + shares(6, 0.1)[:-9]  # resumed, then killed
    (root / 'experiments' / 'distilled' / 'shares.jsonl').write_text(logged)
    text = page(root, '--versus', 'distilled', 'alone')
    table = re.search(r'<table>.*</table>', text, re.S).group()
    assert '32.33<small class="">+1.33<br>' in table and '▲ +9<br>[+8, +10]' in table  # distilled, teacher
    assert table.index('psnr') < table.index('params')
    data = data_of(text)
    assert data['curves']['title'] == 'psnr on Tiny'
    assert data['curves']['lines'][2] == {'label': 'distilled', 'x': [1, 2, 4], 'y': [21., 26., 28.5],
                                          'low': [21., 26., 28.5], 'high': [21., 26., 28.5]}
    assert data['shares'] == [{'label': 'distilled', 'lines': [
        {'label': 'pixel 70 %, cosine +1.00', 'x': [2, 4], 'y': [0.5, 0.7]},
        {'label': 'response_kd 30 %, cosine −0.25', 'x': [2, 4], 'y': [0.5, pytest.approx(0.3)]}]}]
    assert [image['name'] for image in data['images']] == ['1', '2', '0'] and data['pair'] == ['alone', 'distilled']
    assert text.count('data:image/webp') == 3 * len(data['labels'])
    assert not re.search(r'(src|href)="|@import|url\(["\']?http|@@', text)


def test_a_damaged_share_is_named(root):
    (root / 'experiments' / 'alone' / 'shares.jsonl').write_text('{"iter": 1, "shares": {"pixel": 3}}\n' + shares(2, 1))
    with pytest.raises(SystemExit):
        page(root)


def test_pictures_are_embedded_without_loss(root):
    text = page(root)
    labels = data_of(text)['labels']
    url = re.search(rf'id="picture-0-{labels.index("teacher")}">data:image/webp;base64,(.*?)<', text).group(1)
    decoded = cv2.imdecode(np.frombuffer(html_report.base64.b64decode(url), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded[20, 30], GREEN)
    np.testing.assert_array_equal(decoded[20, 31], RED)


def test_labels_are_text_and_not_code(root):
    path = root / 'report.html'
    evil = '</script><b>@@DATA@@'
    compare.main([f'{evil}=teacher', 'alone', '--root', str(root), '--size', '8x8', '--html', str(path)])
    text = path.read_text(encoding='utf-8')
    assert evil not in text and data_of(text)['labels'][1] == evil


def test_numbers_that_are_none_are_null(root):
    path = root / 'results' / 'alone' / 'metrics_Tiny.json'
    path.write_text(path.read_text().replace('30.0', 'Infinity'))
    images = {image['name']: image for image in data_of(page(root))['images']}
    assert images['0']['scores']['alone']['psnr'] is None and images['1']['scores']['alone']['psnr'] == 31


def test_what_is_too_much_for_a_page_is_left_out_and_named(root, monkeypatch):
    monkeypatch.setattr(html_report, 'ROOM', 1)
    text = page(root, '--versus', 'distilled', 'alone')
    assert [image['name'] for image in data_of(text)['images']] == ['1']
    assert '2 more images are not in this page: 2, 0.' in text


def test_without_saved_images_there_is_no_slider(root):
    (root / 'results' / 'alone' / 'visualization' / 'Tiny' / '0_alone.png').unlink()
    text = page(root)
    assert data_of(text)['images'] == [] and '<table>' in text


def test_a_folder_is_refused(root):
    with pytest.raises(OptionError, match='is a folder. Write the name of a file'):
        compare.compare(root, ['alone'], root / 'out', html=root)
    assert not (root / 'out').exists()


# -------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope='module')
def start():
    """Starts a headless chromium with a window of some size, light or dark."""
    webdriver = pytest.importorskip('selenium.webdriver')
    chromium, driver = (next(filter(None, map(shutil.which, names)), None)
                        for names in (('chromium', 'chromium-browser', 'google-chrome'), ('chromedriver', )))
    if not chromium or not driver:
        pytest.skip('No chromium with its driver is here. On Debian: apt-get install chromium chromium-driver')
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ('--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars', '--disable-dev-shm-usage'):
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))

    def opened(path, width=1000, height=1400, scheme='light'):
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', {
            'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width < 600})
        browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {
            'features': [{'name': 'prefers-color-scheme', 'value': scheme}]})
        browser.get(path.as_uri())
        return Page(browser)
    yield opened
    browser.quit()


class Page:
    """A page in the browser: what is on its screen, and a hand to touch it."""

    def __init__(self, browser) -> None:
        self.browser = browser

    def js(self, code: str, *arguments):
        return self.browser.execute_script(code, *arguments)

    def find(self, selector: str):
        return self.browser.find_element('css selector', selector)

    def canvas(self) -> np.ndarray:
        """The pixels of the slider on the screen, BGR, once its pictures are decoded and drawn."""
        self.browser.execute_async_script(
            'const done = arguments[0]; const wait = () => decoded[view.left] && decoded[view.right]'
            ' ? requestAnimationFrame(() => requestAnimationFrame(done)) : setTimeout(wait, 5); wait();')
        png = self.find('#canvas').screenshot_as_png
        return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)

    def edge(self) -> float:
        """Where, from 0 to 1, the right network begins; left of it all is red, right of it blue."""
        row = self.canvas()[-20]
        red, blue = (np.flatnonzero((row == colour).all(axis=1)) for colour in (RED, BLUE))
        assert not len(red) or not len(blue) or red.max() < blue.min()
        assert len(red) + len(blue) > len(row) - 30  # the handle
        return (red.max() + 1 if len(red) else 0) / len(row)

    def drag(self, start: float, end: float) -> None:
        """The mouse, along the middle, from one share of the width to another."""
        from selenium.webdriver import ActionChains
        canvas = self.find('#canvas')
        width = canvas.size['width']
        chain = ActionChains(self.browser, duration=20)
        chain.move_to_element_with_offset(canvas, int((start - .5) * width), 0)
        chain.click_and_hold().move_by_offset(int((end - start) * width), 0).release().perform()

    def keys(self, *keys: str) -> None:
        self.find('#canvas').send_keys(*keys)

    def order(self) -> list[str]:
        return [button.get_attribute('data-name') for button in
                self.browser.find_elements('css selector', '#list button')]


@pytest.fixture
def opened(root, start):
    page(root, '--versus', 'distilled', 'alone', '--bicubic')
    view = start(root / 'report.html')
    yield view
    assert view.browser.get_log('browser') == []  # neither an error nor a request to somewhere


def test_the_slider_is_moved_by_mouse_keys_and_the_control_below(opened):
    assert opened.edge() == pytest.approx(0.5, abs=0.02)
    opened.drag(0.5, 0.2)
    assert opened.edge() == pytest.approx(0.2, abs=0.02)
    opened.keys(*['\ue014'] * 5)  # arrow right
    assert opened.edge() == pytest.approx(0.3, abs=0.02)
    opened.keys('\ue010')  # end: all of it is the left network
    assert opened.edge() > 0.99
    opened.find('#split').send_keys('\ue011')  # home
    assert opened.edge() < 0.02


def test_any_two_networks_are_chosen_and_swapped(opened):
    opened.keys('x')
    row = opened.canvas()[-20]
    assert tuple(row[5]) == BLUE and tuple(row[-5]) == RED
    assert opened.find('#left-tag').text == 'distilled · 30.00'
    opened.js("arguments[0].value = 'ground truth'; arguments[0].onchange()", opened.find('#left'))
    picture = opened.canvas()
    assert len(np.unique(picture[:, :picture.shape[1] // 3].reshape(-1, 3), axis=0)) > 50
    assert tuple(picture[-20][-5]) == RED
    assert opened.find('#left-tag').text == 'ground truth'


def test_images_are_ordered_for_the_networks_that_are_shown(opened):
    assert opened.order() == ['1', '2', '0']
    assert opened.find('#list').text.split() == ['1', '−1', '2', '+4', '0', '+1']
    select = 'arguments[0].value = arguments[1]; arguments[0].onchange()'
    for order, expected in (('worst', ['1', '0', '2']), ('best', ['2', '0', '1']), ('name', ['0', '1', '2'])):
        opened.js(select, opened.find('#order'), order)
        assert opened.order() == expected
    opened.js(select, opened.find('#order'), 'both')
    opened.keys('x')
    assert opened.order() == ['2', '1', '0']  # worst for `alone`
    current = 'return document.querySelector("[aria-current=true]").dataset.name'
    assert opened.js(current) == '1'
    opened.keys('n')
    assert opened.js(current) == '0'


def test_zoom_shows_the_pixels_themselves(opened):
    opened.js("arguments[0].value = 'teacher'; arguments[0].onchange()", opened.find('#left'))
    opened.keys('\ue010', '0')
    whole = opened.canvas()
    green = (whole == GREEN).all(axis=2)
    share = np.argwhere(green).mean(axis=0) / whole.shape[:2]
    assert green.sum() > 50 and abs(share - np.array([20.5, 30.5]) / SIZE).max() < 0.01 + abs(
        whole.shape[1] / whole.shape[0] - 1)
    opened.keys('+', '+', '+')
    zoomed = (opened.canvas() == GREEN).all(axis=2)
    assert zoomed.sum() == pytest.approx(green.sum() * 1.25**6, rel=0.2)  # 1.25 for each of two sides, three times
    before = np.argwhere(zoomed).mean(axis=0)
    opened.keys('\ue008', '\ue014', '\ue008')  # shift and arrow right: what was right of the middle comes nearer
    after = np.argwhere((opened.canvas() == GREEN).all(axis=2)).mean(axis=0)
    assert after[1] == pytest.approx(before[1] - 40, abs=2) and after[0] == pytest.approx(before[0], abs=1)
    opened.find('#focus').click()
    assert opened.js('return scale() >= 4')


def test_on_a_telephone_nothing_is_wider_than_the_screen_and_a_finger_moves_the_slider(root, start):
    (root / 'experiments' / 'alone' / 'shares.jsonl').write_text(shares(1, 0.2) + shares(2, 0.3))
    page(root, '--versus', 'distilled', 'alone')
    view = start(root / 'report.html', width=360, height=1600)
    assert view.js('return document.documentElement.scrollWidth') <= 360
    assert len(view.browser.find_elements('css selector', '.chart svg')) == 2
    assert view.edge() == pytest.approx(0.5, abs=0.05)
    box = view.js('const b = canvas.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]')

    def touch(kind: str, *places: float) -> None:
        points = [{'x': box[0] + place * box[2], 'y': box[1] + box[3] / 2} for place in places]
        view.browser.execute_cdp_cmd('Input.dispatchTouchEvent', {'type': kind, 'touchPoints': points})
    touch('touchStart', 0.5)
    for place in (0.55, 0.65, 0.75):
        touch('touchMove', place)
    touch('touchEnd')
    assert view.edge() == pytest.approx(0.75, abs=0.05)
    touch('touchStart', 0.4, 0.6)
    for half in (0.15, 0.2):
        touch('touchMove', 0.5 - half, 0.5 + half)
    touch('touchEnd')
    assert view.js('return view.zoom') == pytest.approx(2, rel=0.1)


def test_light_and_dark(root, start):
    page(root)
    ink = {}
    for scheme in ('light', 'dark'):
        view = start(root / 'report.html', scheme=scheme)
        screen = cv2.imdecode(np.frombuffer(view.browser.get_screenshot_as_png(), np.uint8), cv2.IMREAD_COLOR)
        ink[scheme] = int(screen[2, 2].min()), view.js('return getComputedStyle(document.body).color')
    assert ink['light'][0] > 240 and ink['dark'][0] < 40
    assert ink['light'][1] != ink['dark'][1]
