"""Finding and opening images, videos and cameras."""

import os
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile

from mmefficientmod.apis.inputs import (
    IMAGES,
    Source,
    Video,
    as_rgb,
    find_sources,
    load_image,
)
from mmefficientmod.datasets import DataError

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def image(path):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(Path(path).suffix, PIXELS)
    data.tofile(path)


def video(path, frames=3, rate=12.5, size=(6, 4)):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    code = cv2.VideoWriter.fourcc(*'MJPG')
    writer = cv2.VideoWriter(str(path), code, rate, size)
    for i in range(frames):
        writer.write(np.full((size[1], size[0], 3), 20 * (i % 9), np.uint8))
    writer.release()


def names(*inputs, skip=()):
    return [source.name for source in find_sources(inputs, skip)]


def test_folder_is_searched_with_the_folders_below_it(place):
    for path in ('in/b.PNG', 'in/sub/a.jpg', 'in/.hidden/c.jpg', 'in/._d.jpg'):
        image(path)
    video('in/sub/clip.avi')
    Path('in/notes.txt').write_text('no image')
    assert names('in') == ['b.PNG', 'sub/a.jpg', 'sub/clip.avi']
    assert [s.kind for s in find_sources(['in'])][-1] == 'video'
    assert names('in', skip=['in/sub']) == ['b.PNG']
    # Hidden ones are found by their names.
    assert names('in/.hidden') == ['c.jpg']


def test_link_to_a_folder_above_is_followed_once(place):
    image('in/a.jpg')
    image('other/b.jpg')
    Path('in/up').symlink_to('..', target_is_directory=True)
    assert names('in') == ['a.jpg', 'up/other/b.jpg']


@pytest.mark.parametrize(
    ('pattern', 'found'),
    [
        ('in/*.jpg', ['a.jpg']),
        ('in/*', ['a.jpg', 'sub/b.jpg', 'sub/sub/c.jpg']),
        ('in/**/*.jpg', ['a.jpg', 'sub/b.jpg', 'sub/sub/c.jpg']),
        ('in/**', ['a.jpg', 'sub/b.jpg', 'sub/sub/c.jpg']),
        ('in/?ub/[b].jpg', ['sub/b.jpg']),
    ],
)
def test_pattern_is_expanded(place, pattern, found):
    for path in ('in/a.jpg', 'in/sub/b.jpg', 'in/sub/sub/c.jpg'):
        image(path)
    Path('in/notes.txt').write_text('no image')
    assert sorted(names(pattern)) == found


def test_file_whose_name_is_also_a_pattern_or_a_number_comes_first(place):
    image('a[1].jpg')
    Path('7').write_bytes(Path('a[1].jpg').read_bytes())
    (number,) = find_sources(['7'])
    assert (number.kind, number.name) == ('image', '7')
    assert names('a[1].jpg') == ['a[1].jpg']


def test_names_are_below_the_folder_that_has_all_inputs(place):
    for path in ('x/y/photo.jpg', 'x/z/photo.jpg', 'x/z/sub/other.jpg'):
        image(path)
    assert names('x/y/photo.jpg') == ['photo.jpg']
    assert names('x/y/photo.jpg', 'x/z/photo.jpg') == [
        'y/photo.jpg',
        'z/photo.jpg',
    ]
    assert names('x/z', str(place / 'x/y/photo.jpg')) == [
        'z/photo.jpg',
        'z/sub/other.jpg',
        'y/photo.jpg',
    ]
    assert names('x/z/photo.jpg', './x/../x/z/photo.jpg') == ['photo.jpg']


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ('no.jpg', 'no.jpg does not exist'),
        ('empty', 'empty has no images or videos: .* ends in .bmp'),
        ('*.png', r'\*.png matches no file that ends in .bmp'),
        ('*.txt', r'\*.txt matches notes.txt, but no file that ends in'),
        ('notes.txt', 'notes.txt is no image that can be read; the suffixes'),
        ('nothing.jpg', 'nothing.jpg is no image that can be read, it is e'),
        ('broken.avi', 'broken.avi is no video that can be read'),
        ('http://a/b.jpg', 'b.jpg is a URL; download the file first'),
        ('pipe', 'pipe cannot be read'),
    ],
)
def test_input_that_cannot_be_used_is_named(place, given, message):
    Path('empty').mkdir()
    Path('empty/.jpg_files').write_text('none ends in .jpg')
    Path('notes.txt').write_text('no image')
    Path('nothing.jpg').touch()
    Path('broken.avi').write_text('no video')
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind('pipe')
        with pytest.raises(DataError, match=message):
            find_sources([given])


@pytest.mark.skipif(os.path.exists('/dev/video99'), reason='a camera is there')
@pytest.mark.parametrize('given', ['99', '/dev/null'])
def test_number_and_device_file_are_cameras(given):
    with pytest.raises(DataError, match=f'{given} is no camera that can be o'):
        find_sources([given])


def test_frames_and_rate_of_a_video(place):
    video('clip.avi', rate=29.97)
    source = Source('clip.avi', 'clip.avi', 'video')
    clip = Video(source)
    assert (clip.length, clip.rate) == (3, pytest.approx(29.97))
    assert [round(f.mean(), -1) for f in clip] == [0, 20, 40]
    # Cut off in the last frame.
    video('clip.avi', frames=40, size=(64, 48))
    data = Path('clip.avi').read_bytes()
    Path('clip.avi').write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r'clip.avi ended after \d+ of 40'):
        list(Video(source))


@pytest.mark.parametrize('suffix', IMAGES)
def test_every_suffix_that_is_listed_can_be_read(place, suffix):
    name = {'.jfif': '.jpg', '.jpe': '.jpg'}.get(suffix, suffix)
    pixels = np.tile(PIXELS, (16, 16, 1))
    if suffix in ('.pbm', '.pgm'):
        pixels = pixels[..., 0]
    _, data = cv2.imencode(name, pixels)
    data.tofile(f'a{suffix}')
    (source,) = find_sources([f'a{suffix}'])
    assert load_image(source, LoadImageFromFile())['img'].shape == (64, 96, 3)


def test_image_that_cannot_be_loaded_is_named(place):
    image('a.png')
    Path('a.png').write_bytes(Path('a.png').read_bytes()[:30])
    (source,) = find_sources(['a.png'])
    with pytest.raises(DataError, match='a.png is no image that can be read'):
        load_image(source, LoadImageFromFile())
    Path('a.png').unlink()
    with pytest.raises(DataError, match='No such file or directory'):
        load_image(source, LoadImageFromFile())


@pytest.mark.parametrize(
    ('loaded', 'drawn'),
    [
        (np.uint8([[[1, 2, 3]]]), [3, 2, 1]),
        (np.uint8([[[1, 2, 3, 200]]]), [3, 2, 1]),
        (np.uint8([[7]]), [7, 7, 7]),
        (np.uint8([[[7]]]), [7, 7, 7]),
        (np.uint8([[[5, 6]]]), [5, 5, 5]),
        (np.uint16([[65535]]), [255, 255, 255]),
        (np.float32([[[300, -1, np.nan]]]), [0, 0, 255]),
    ],
)
def test_any_loaded_image_becomes_rgb(loaded, drawn):
    rgb = as_rgb(loaded)
    assert (rgb.dtype, rgb.shape) == (np.uint8, (1, 1, 3))
    assert rgb[0, 0].tolist() == drawn
