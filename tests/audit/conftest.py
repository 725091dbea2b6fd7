"""A browser for the tests of reports."""

import pytest

from helpers.browser import start


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    downloads = tmp_path_factory.mktemp("downloads")
    for browser in start(tmp_path_factory.mktemp("profile"), downloads):
        browser.downloads = downloads
        yield browser
