"""A web shop on Python's own HTTP server and SQLite, and its customers, in three mixes as SPECweb2009 has them.

    shop.py serve DIRECTORY          serves until it is ended; writes its port to DIRECTORY/port
    shop.py visit DIRECTORY MIX      one customer's visit to the shop that serves in DIRECTORY
    shop.py expect DIRECTORY MIX     a visit to a shop of its own

A visit writes a digest of every page that came to the standard output. The shop's data and the visits are made
from fixed seeds: two visits of a mix have the same digest, whoever else is in the shop.
"""

import hashlib
import http.client
import os
import random
import socket
import sqlite3
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PRODUCTS = 2000
IMAGES = 400
IMAGE_BYTES = (4096, 65536)
DOWNLOADS = 6
DOWNLOAD_BYTES = 6 << 20
ACCOUNTS = 8
# Pages of a visit.
PAGES = {"banking": 500, "ecommerce": 120, "support": 20}
IMAGES_OF_A_PAGE = 6
# Pages that the server keeps as they were made.
KEPT_PAGES = 500


def noise(seed, length):
    return random.Random(seed).randbytes(length)


class Shop:
    """The data: products and accounts in SQLite, images and downloads as files."""

    def __init__(self, directory):
        self.directory = directory
        self.lock = threading.Lock()
        self.kept = {}
        self.customers = 0
        self.base = sqlite3.connect(":memory:", check_same_thread=False)
        self.base.executescript(
            "CREATE TABLE product (id INTEGER PRIMARY KEY, name TEXT, text TEXT, price INTEGER, image INTEGER);"
            "CREATE TABLE account (customer INTEGER, id INTEGER, balance INTEGER, PRIMARY KEY (customer, id));"
            "CREATE TABLE transfer (customer INTEGER, source INTEGER, target INTEGER, amount INTEGER);"
            "CREATE INDEX by_customer ON transfer (customer);"
        )
        choose = random.Random(1)
        words = ["".join(choose.choices("abcdefghijklmnopqrstuvwxyz", k=choose.randint(3, 9))) for _ in range(500)]
        self.base.executemany(
            "INSERT INTO product VALUES (?, ?, ?, ?, ?)",
            (
                (at, " ".join(choose.choices(words, k=3)), " ".join(choose.choices(words, k=40)),
                 choose.randint(100, 99999), choose.randrange(IMAGES))
                for at in range(PRODUCTS)
            ),
        )
        for at in range(IMAGES):
            self.write(f"image-{at}", noise(at, choose.randint(*IMAGE_BYTES)))
        for at in range(DOWNLOADS):
            self.write(f"download-{at}", noise(IMAGES + at, DOWNLOAD_BYTES))

    def write(self, name, content):
        with open(os.path.join(self.directory, name), "wb") as file:
            file.write(content)

    def enter(self):
        with self.lock:
            self.customers += 1
            rows = [(self.customers, at, 100_000) for at in range(ACCOUNTS)]
            self.base.executemany("INSERT INTO account VALUES (?, ?, ?)", rows)
            return str(self.customers)

    def leave(self, customer):
        with self.lock:
            for table in "account", "transfer":
                self.base.execute(f"DELETE FROM {table} WHERE customer = ?", (customer,))
        return "bye"

    def transfer(self, customer, source, target, amount):
        with self.lock:
            self.base.execute("INSERT INTO transfer VALUES (?, ?, ?, ?)", (customer, source, target, amount))
            change = "UPDATE account SET balance = balance + ? WHERE customer = ? AND id = ?"
            self.base.execute(change, (-amount, customer, source))
            self.base.execute(change, (amount, customer, target))
            accounts = self.base.execute(
                "SELECT id, balance FROM account WHERE customer = ? ORDER BY id", (customer,)).fetchall()
            last = self.base.execute(
                "SELECT source, target, amount FROM transfer WHERE customer = ? ORDER BY rowid DESC LIMIT 20",
                (customer,)).fetchall()
        return page("Accounts", [("Account", "Balance")] + accounts) + page("Transfers", last)

    def shelf(self, first):
        if first not in self.kept:
            with self.lock:
                rows = self.base.execute(
                    "SELECT name, text, price, image FROM product WHERE id >= ? ORDER BY id LIMIT 20",
                    (first,)).fetchall()
                if len(self.kept) >= KEPT_PAGES:
                    self.kept.clear()
                self.kept[first] = page("Products", rows)
        return self.kept[first]

    def found(self, word):
        with self.lock:
            rows = self.base.execute(
                "SELECT id, name FROM product WHERE text LIKE ? ORDER BY id LIMIT 30", (f"%{word}%",)).fetchall()
        return page("Found", rows)


def page(title, rows):
    cells = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    table = "".join(f"<tr>{row}</tr>\n" for row in cells)
    return f"<html><head><title>{title}</title></head><body><table>\n{table}</table></body></html>\n"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two small writes: the second would wait for the customer's acknowledgement of the first.
    disable_nagle_algorithm = True
    shop = None

    def do_GET(self):
        what, *words = self.path.strip("/").split("/")
        if what == "file":
            path = os.path.join(self.shop.directory, words[0])
            with open(path, "rb") as file:
                self.head("application/octet-stream", os.fstat(file.fileno()).st_size)
                self.wfile.flush()
                self.connection.sendfile(file)
            return
        if what not in ("enter", "leave", "transfer", "shelf", "found"):
            self.send_error(404)
            return
        if what in ("leave", "transfer", "shelf"):
            words = [int(word) for word in words]
        body = getattr(self.shop, what)(*words).encode()
        self.head("text/html; charset=utf-8", len(body))
        self.wfile.write(body)

    def head(self, kind, length):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True


def open_shop(directory):
    Handler.shop = Shop(directory)
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


class Customer:
    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port)
        self.digest = hashlib.sha256()

    def get(self, *words):
        self.connection.request("GET", "/" + "/".join(str(word) for word in words))
        answer = self.connection.getresponse()
        body = answer.read()
        if answer.status != 200 or len(body) != int(answer.headers["Content-Length"]):
            sys.exit(f"{words}: status {answer.status}, {len(body)} bytes")
        return body

    def see(self, *words):
        self.digest.update(self.get(*words))

    def visit(self, mix):
        choose = random.Random(mix)
        number = self.get("enter").decode()
        for _ in range(PAGES[mix]):
            if mix == "banking":
                source, target = choose.sample(range(ACCOUNTS), 2)
                self.see("transfer", number, source, target, choose.randint(1, 500))
            elif mix == "ecommerce":
                self.see("shelf", choose.randrange(0, PRODUCTS, 20))
                for _ in range(IMAGES_OF_A_PAGE):
                    self.see("file", f"image-{choose.randrange(IMAGES)}")
            else:
                self.see("found", choose.choice(["ab", "ce", "xy", "qu"]))
                self.see("file", f"download-{choose.randrange(DOWNLOADS)}")
        self.see("leave", number)
        return self.digest.hexdigest()


def loopback_up():
    """Brings up the loopback device, which a system of one process has to do itself."""
    import fcntl
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        # SIOCGIFFLAGS, SIOCSIFFLAGS and IFF_UP of Linux.
        flags = fcntl.ioctl(any_socket, 0x8913, struct.pack("16sH22x", b"lo", 0))
        name, flags = struct.unpack("16sH22x", flags)
        if not flags & 1:
            fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH22x", name, flags | 1))


def main():
    task, directory, *mix = sys.argv[1:]
    port_file = os.path.join(directory, "port")
    if task == "visit":
        with open(port_file) as file:
            print(Customer(int(file.read())).visit(*mix))
        return
    os.makedirs(directory, exist_ok=True)
    if task == "expect":
        print(Customer(open_shop(directory)).visit(*mix))
        return
    loopback_up()
    port = open_shop(directory)
    with open(port_file + ".new", "w") as file:
        file.write(str(port))
    os.rename(port_file + ".new", port_file)
    while True:
        time.sleep(60)


main()
