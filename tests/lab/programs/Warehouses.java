import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Handles orders from warehouses that live in the heap, as SPECjbb2005 does: a thread for each, and one more
 * warehouse in each step. Prints a digest of all of it, which does not depend on how the threads run.
 *
 * Usage: Warehouses MOST-WAREHOUSES ORDERS-OF-A-STEP
 */
public final class Warehouses {
    private static final int ITEMS = 20_000;
    private static final int KEPT_ORDERS = 4_000;

    record Line(int item, int count, String note) {}

    record Order(long number, String customer, List<Line> lines, long price) {}

    /** One warehouse: its stock, and the orders that it still keeps. */
    static final class Warehouse {
        private final Map<Integer, Integer> stock = new HashMap<>();
        private final ArrayDeque<Order> orders = new ArrayDeque<>();
        private final Map<String, Long> spent = new HashMap<>();
        private long seed;
        private long digest;
        private long next;

        Warehouse(int number) {
            seed = 0x1ac40000L + number;
            for (int item = 0; item < ITEMS; item++)
                stock.put(item, 1_000);
        }

        /** A linear congruential generator: the same numbers on every machine. */
        private int choose(int below) {
            seed = seed * 6364136223846793005L + 1442695040888963407L;
            return (int) Long.remainderUnsigned(seed >>> 33, below);
        }

        void handle(int count) {
            for (int at = 0; at < count; at++) {
                List<Line> lines = new ArrayList<>();
                long price = 0;
                for (int line = choose(10) + 5; line > 0; line--) {
                    int item = choose(ITEMS);
                    int wanted = choose(5) + 1;
                    int left = stock.get(item) - wanted;
                    stock.put(item, left < 0 ? 1_000 : left);
                    lines.add(new Line(item, wanted, "item " + item + " of order " + next));
                    price += (long) wanted * (item % 97 + 1);
                }
                Order order = new Order(next++, "customer " + choose(3_000), lines, price);
                orders.addLast(order);
                spent.merge(order.customer(), price, Long::sum);
                if (orders.size() > KEPT_ORDERS)
                    digest = digest * 31 + delivered(orders.removeFirst());
            }
        }

        private static long delivered(Order order) {
            long sum = order.price();
            for (Line line : order.lines())
                sum = sum * 31 + line.note().hashCode() + line.count();
            return sum;
        }

        long digest() {
            long sum = digest;
            for (Order order : orders)
                sum = sum * 31 + delivered(order);
            for (long money : spent.values())
                sum += money;
            return sum;
        }
    }

    public static void main(String[] arguments) throws InterruptedException {
        int most = Integer.parseInt(arguments[0]);
        int count = Integer.parseInt(arguments[1]);
        List<Warehouse> warehouses = new ArrayList<>();
        for (int number = 0; number < most; number++) {
            warehouses.add(new Warehouse(number));
            List<Thread> threads = new ArrayList<>();
            for (Warehouse warehouse : warehouses) {
                Thread thread = new Thread(() -> warehouse.handle(count));
                thread.start();
                threads.add(thread);
            }
            for (Thread thread : threads)
                thread.join();
        }
        long sum = 0;
        for (Warehouse warehouse : warehouses)
            sum = sum * 1_000_003 + warehouse.digest();
        System.out.println(Long.toHexString(sum));
    }
}
