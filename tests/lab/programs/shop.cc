#include <algorithm>
#include <map>
#include <string>
#include <vector>

struct Order {
    std::string customer;
    std::vector<std::pair<std::string, unsigned>> lines;
};

class Shop {
public:
    void stock(const std::string &item, unsigned count) { stock_[item] += count; }

    bool take(const Order &order) {
        for (const auto &line : order.lines)
            if (stock_[line.first] < line.second)
                return false;
        for (const auto &line : order.lines)
            stock_[line.first] -= line.second;
        orders_[order.customer].push_back(order);
        return true;
    }

    std::vector<std::string> best() const {
        std::vector<std::pair<std::size_t, std::string>> counted;
        for (const auto &orders : orders_)
            counted.emplace_back(orders.second.size(), orders.first);
        std::sort(counted.rbegin(), counted.rend());
        std::vector<std::string> names;
        for (const auto &one : counted)
            names.push_back(one.second);
        return names;
    }

private:
    std::map<std::string, unsigned> stock_;
    std::map<std::string, std::vector<Order>> orders_;
};

std::size_t run(unsigned orders) {
    Shop shop;
    shop.stock("apple", orders);
    shop.stock("pear", orders / 2);
    for (unsigned number = 0; number < orders; number++)
        shop.take({std::to_string(number % 7), {{number % 2 ? "apple" : "pear", 1}}});
    return shop.best().size();
}
